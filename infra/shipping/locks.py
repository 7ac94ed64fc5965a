"""Makes the locks anew: `python -m infra.shipping.locks [--variant cpu]`.

pip resolves the requirements of pyproject.toml for the oldest Python that is supported, and reports the wheel that it
would take on every other Python and processor. Nothing is installed, and few bytes are downloaded (PEP 658). Packages
that no server imports are left out, with all that only they ask for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Variant:
    """A lock to make.

    extra: of pyproject.toml, whose server it is; None for what builds qwonnx's wheel.
    machines: the processors that have wheels for it.
    """

    name: str
    extra: str | None
    machines: tuple[str, ...]

    @property
    def title(self) -> str:
        if self.extra is None:
            return "what builds qwonnx's wheel."
        return f"a server of qwonnx[{self.extra}], without what it never imports."


VARIANTS = (
    Variant("cpu", "cpu", ("x86_64", "aarch64")),
    Variant("cuda", "gpu", ("x86_64",)),
    Variant("build", None, ("x86_64", "aarch64")),
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
    return [*project["dependencies"], *project["optional-dependencies"][variant.extra]]


def make_lock(variant: Variant) -> tuple[Pin, ...]:
    """Ask pip.

    Raises:
        SystemExit: pip finds no versions, or no wheel for a Python or processor that the variant names.
    """
    wanted = requirements_of(variant)
    resolved = {wheel.name: wheel for wheel in _report(wanted, PYTHONS[0], variant.machines[0])}
    needed = imported_closure(wanted, {name: wheel.requires for name, wheel in resolved.items()})
    hashes: dict[str, set[str]] = {name: {resolved[name].sha256} for name in needed}
    exact = [f"{name}=={resolved[name].version}" for name in sorted(needed)]
    for machine in variant.machines:
        for python in PYTHONS:
            for wheel in _report(exact, python, machine, "--no-deps"):
                hashes[wheel.name].add(wheel.sha256)
    return tuple(Pin(name, resolved[name].version, tuple(sorted(hashes[name]))) for name in sorted(needed))


def imported_closure(wanted: Sequence[str], requires: Mapping[str, Sequence[str]]) -> set[str]:
    """Names of all packages that the requirements lead to, without those that no server imports."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in wanted]
    while waiting:
        requirement = waiting.pop()
        name = canonical_name(requirement.name)
        if name in NOT_IMPORTED:
            continue
        extras = ["", *requirement.extras]
        first = name not in found
        found.add(name)
        for text in requires[name]:
            following = Requirement(text)
            marker = following.marker
            applies = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)
            if applies and (first or requirement.extras) and canonical_name(following.name) not in found:
                waiting.append(following)
    return found


def _report(requirements: Sequence[str], python: str, machine: str, *flags: str) -> list[Wheel]:
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
            f"Python {PYTHONS[0]} to {PYTHONS[-1]}.",
            "pip install --no-deps --require-hashes --only-binary=:all: -r THIS FILE",
        )
        pins = make_lock(variant)
        lock_path(variant.name).write_text(lock_text(pins, heading), encoding="utf-8")
        print(f"{lock_path(variant.name).relative_to(ROOT)}: {len(pins)} packages")


if __name__ == "__main__":
    main()
