"""Makes the locks anew: `python -m infra.shipping.locks [--variant cpu]`; `dev` takes some minutes.

pip resolves the requirements of pyproject.toml for the oldest Python that is supported, and reports the wheel that it
would take on every other Python and processor. Nothing is installed, and few bytes are downloaded (PEP 658). Packages
that no server imports are left out of a server's lock, with all that only they ask for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from infra.shipping.lock_file import Pin, canonical_name, lock_path, lock_text

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# The newest glibc that a wheel may ask for: llguidance needs 2.31 on aarch64 (Debian 11, Ubuntu 20.04).
_GLIBC_MINORS = (5, 12, 17, 24, 26, 27, 28, 31)

# Packages that a server never imports, and who asks for them. tests/infra/shipping/test_image_root.py answers a
# question without them.
NOT_IMPORTED = {
    "huggingface-hub": "tokenizers, for downloads; with hf-xet, httpx2, pyyaml, ... 29 MB",
    "flatbuffers": "onnxruntime, for its Python tools",
    "packaging": "onnxruntime, for its Python tools",
    "protobuf": "onnxruntime, for its Python tools",
}
# What the lock for developers leaves out: torch's builds for CPUs are on its own index, and infra/constraints.txt names
# the release. Those on PyPI ask for gigabytes of CUDA.
NOT_LOCKED = {"torch": "installed by infra/install.py, from torch's index of CPU wheels if it can be reached"}


@dataclass(frozen=True, slots=True)
class Variant:
    """A lock to make.

    extra: of pyproject.toml, whose server or developers it is for; None for what builds qwonnx's wheel.
    machines: the processors that have wheels for it.
    left_out: packages that it does not have, with all that only they ask for.
    pythons: the minor versions that have wheels for it.
    constrained: by infra/constraints.txt.
    """

    name: str
    extra: str | None
    machines: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=lambda: NOT_IMPORTED)
    pythons: tuple[str, ...] = PYTHONS
    constrained: bool = False

    @property
    def title(self) -> str:
        if self.extra is None:
            return "what builds qwonnx's wheel."
        if self.extra == "dev":
            return "qwonnx[dev], for its developers and CI, without torch and what only torch asks for."
        return f"a server of qwonnx[{self.extra}], without what it never imports."


VARIANTS = (
    Variant("cpu", "cpu", ("x86_64", "aarch64")),
    Variant("cuda", "gpu", ("x86_64",)),
    Variant("build", None, ("x86_64", "aarch64")),
    Variant("dev", "dev", ("x86_64",), NOT_LOCKED, PYTHONS[:1], constrained=True),
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """What pip would install."""

    name: str
    version: str
    sha256: str
    requires: tuple[str, ...]


def requirements_of(variant: Variant) -> list[str]:
    """The variant's requirements, from pyproject.toml."""
    read = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if variant.extra is None:
        return list(read["build-system"]["requires"])
    project = read["project"]
    return [*project["dependencies"], *_of_extra(variant.extra, project["optional-dependencies"])]


def _of_extra(extra: str, extras: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The extra's requirements, with those of the extras that it names: `qwonnx[cpu]`."""
    for text in extras[extra]:
        requirement = Requirement(text)
        if requirement.name != "qwonnx":
            yield text
            continue
        for each in sorted(requirement.extras):
            yield from _of_extra(each, extras)


def make_lock(variant: Variant) -> tuple[Pin, ...]:
    """Ask pip.

    Raises:
        SystemExit: pip finds no versions, or no wheel for a Python or processor that the variant names.
    """
    wanted = requirements_of(variant)
    flags = ("-c", str(ROOT / "infra" / "constraints.txt")) if variant.constrained else ()
    resolved = {wheel.name: wheel for wheel in resolve(wanted, variant.pythons[0], variant.machines[0], *flags)}
    requires = {name: wheel.requires for name, wheel in resolved.items()}
    needed = imported_closure(wanted, requires, variant.left_out)
    hashes: dict[str, set[str]] = {name: {resolved[name].sha256} for name in needed}
    exact = [f"{name}=={resolved[name].version}" for name in sorted(needed)]
    for machine in variant.machines:
        for python in variant.pythons:
            for wheel in resolve(exact, python, machine, "--no-deps"):
                hashes[wheel.name].add(wheel.sha256)
    return tuple(Pin(name, resolved[name].version, tuple(sorted(hashes[name]))) for name in sorted(needed))


def imported_closure(
    wanted: Sequence[str], requires: Mapping[str, Sequence[str]], left_out: Mapping[str, str] = NOT_IMPORTED
) -> set[str]:
    """Names of all packages that the requirements lead to, without those that are left out."""
    found: set[tuple[str, str]] = set()  # names, each with "" and with every extra that was asked for
    waiting = [Requirement(text) for text in wanted]
    while waiting:
        requirement = waiting.pop()
        name = canonical_name(requirement.name)
        new = [extra for extra in ("", *requirement.extras) if (name, extra) not in found]
        if name in left_out or not new:
            continue
        found.update((name, extra) for extra in new)
        for following in map(Requirement, requires[name]):
            marker = following.marker
            if (marker is None and "" in new) or (
                marker is not None and any(marker.evaluate({"extra": extra}) for extra in new)
            ):
                waiting.append(following)
    return {name for name, _ in found}


def resolve(requirements: Sequence[str], python: str, machine: str, *flags: str) -> list[Wheel]:
    """What pip would install on Linux, for another Python and processor too.

    Args:
        requirements: as pip reads them.
        python: its minor version.
        machine: as platform.machine() says it.
        flags: more options for pip.

    Raises:
        SystemExit: there are no versions that fit together, or one has no wheel.
    """
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS] + [f"manylinux2014_{machine}"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
        command += ["--ignore-installed", "--target", folder, "--only-binary=:all:", "--python-version", python]
        command += [word for platform in platforms for word in ("--platform", platform)]
        run = subprocess.run(
            [*command, "--report", str(report), *flags, *requirements], capture_output=True, text=True, check=False
        )
        if run.returncode:
            raise SystemExit(f"pip finds no lock for Python {python} on {machine}:\n{run.stderr}")
        installs: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [
        Wheel(
            name=canonical_name(each["metadata"]["name"]),
            version=each["metadata"]["version"],
            sha256=each["download_info"]["archive_info"]["hashes"]["sha256"],
            requires=tuple(each["metadata"].get("requires_dist", ())),
        )
        for each in installs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=[each.name for each in VARIANTS], help="only this lock")
    arguments = parser.parse_args()
    for variant in VARIANTS:
        if arguments.variant not in (None, variant.name):
            continue
        heading = (
            f"Made by `python -m infra.shipping.locks`: {variant.title}",
            f"Linux on {', '.join(variant.machines)}, glibc 2.{_GLIBC_MINORS[-1]} or later, "
            f"Python {' to '.join(dict.fromkeys((variant.pythons[0], variant.pythons[-1])))}.",
            "pip install --no-deps --require-hashes --only-binary=:all: -r THIS FILE",
        )
        pins = make_lock(variant)
        lock_path(variant.name).write_text(lock_text(pins, heading), encoding="utf-8")
        print(f"{lock_path(variant.name).relative_to(ROOT)}: {len(pins)} packages")


if __name__ == "__main__":
    main()
