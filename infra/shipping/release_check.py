"""Tries a release before its tag: `make release-check`, or `python -m infra.shipping.release_check`.

1. Builds the source distribution and the wheel of a commit, twice, and compares them byte for byte; also the wheel that
   the source distribution gives.
2. Reads their metadata, and looks for paths of this machine in them.
3. Installs the wheel into a clean environment of each Python that it finds, from the package index, and asks the
   miniature a question there: from Python with the extra `cpu`, and from the command line with `cli`. It is exported in
   the environment of the first Python, with the extra `export` (--export-in: in others, too).
4. For a Python that is not here, or that does not export: looks whether every package has a wheel for it.
5. Writes the list of packages (CycloneDX) and their licences beside the wheel; fails on an unknown licence.

The last line is JSON. The exit status is 1 if a step failed. Takes minutes and 2 GB, which is gone afterwards.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import tomllib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from infra.install import cpu_index
from infra.shipping.clean_environment import CleanEnvironment, fetch_pip
from infra.shipping.distributions import (
    Distributions,
    ReleaseError,
    build,
    check_metadata,
    differences,
    full_name,
    install_builder,
)
from infra.shipping.image_root import ROOT
from infra.shipping.interpreters import Interpreter, find_interpreters, look_at
from infra.shipping.licences import INSTALLED
from infra.shipping.locks import PYTHONS, resolve
from infra.shipping.sbom import Bom, SbomError, make_bom, notice

_ASK_FOR_TORCH = ("torch", "optimum")
CHECKPOINT = ROOT / "tests" / "miniature" / "checkpoint"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One Python. state: "answers", "wheels exist" (no interpreter here), or "fails".

    exported: the miniature, with the extra `export`. kernels: the wheel's native kernels load.
    packages: of the exporter and the server, that have a wheel; 0 if nobody looked.
    """

    python: str
    state: str
    exported: bool = False
    kernels: bool = False
    seconds: float = 0.0
    packages: int = 0
    reason: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="HEAD", help="what to build")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the files go that passed")
    parser.add_argument(
        "--python", type=Path, action="append", default=[], help="one more interpreter; can be repeated"
    )
    parser.add_argument("--export-in", default="", help="minor versions, with commas, that export; the first one does")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qwonnx-release-") as folder:
        try:
            passed = _check(arguments, Path(folder))
        except (ReleaseError, SbomError) as error:
            sys.exit(f"release-check: {error}")
    sys.exit(0 if passed else 1)


def _check(arguments: argparse.Namespace, work: Path) -> bool:
    pip_wheel = fetch_pip(work)
    builder = CleanEnvironment(work / "builder", _this_python(), pip_wheel)
    builder.make()
    install_builder(builder.pip)
    commit = full_name(arguments.commit)
    made, again = (build(commit, work / f"build-{turn}", builder.python, turn) for turn in range(2))
    for one, other in (
        (made.sdist, again.sdist),
        (made.wheel, again.wheel),
        (made.wheel, made.of_sdist),
    ):
        differing = differences(one, other)
        if differing:
            raise ReleaseError(f"two builds of {one.name} differ in {', '.join(differing)}")
    print(f"{made.sdist.name}, {made.wheel.name}: two builds, and the wheel of the sdist, are equal byte for byte")
    version = check_metadata(made, str(work))
    _check_version(version)

    found = find_interpreters(PYTHONS, [*arguments.python, Path(sys.executable)])
    exporting = {min(found, key=_order), *filter(None, arguments.export_in.split(","))}
    artifact = work / "miniature-int4"
    verdicts, boms = [], []
    for minor in sorted({*PYTHONS, *found}, key=_order):
        if minor in found:
            environment = CleanEnvironment(work / minor, found[minor], pip_wheel)
            tried, bom = _try(environment, made.wheel, version, artifact, export=minor in exporting)
            boms += [(environment.packages, bom)] if bom else []
        else:
            tried = look_for_wheels(minor)
        verdicts.append(tried)
        print(_row(tried), flush=True)

    passed = all(each.state != "fails" for each in verdicts)
    if passed:
        _write(arguments.out, made, version, *boms[0])
    packages = [len(bom["components"]) for _, bom in boms]
    summary = {"version": version, "commit": commit, "wheel": made.wheel.name, "passed": passed, "packages": packages}
    print(json.dumps({**summary, "pythons": [asdict(each) for each in verdicts]}))
    return passed


def _try(
    environment: CleanEnvironment, wheel: Path, version: str, artifact: Path, *, export: bool
) -> tuple[Verdict, Bom | None]:
    """The verdict on one Python, and its packages with the extra `cpu` alone. `export`: also make an artifact."""
    started = time.perf_counter()
    python = environment.interpreter.version
    bom: Bom | None = None
    try:
        environment.make()
        environment.install(wheel, "cpu")
        bom = make_bom(environment.packages, INSTALLED)
        kernels = environment.has_kernels()
        if export:
            environment.install(wheel, "cpu,export", *cpu_index())
            made = artifact.with_name(f"{artifact.name}-{environment.interpreter.minor}")
            environment.export(CHECKPOINT, made)
            if not artifact.exists():
                artifact.symlink_to(made)
        else:
            made = artifact
        environment.ask_library(made, version)
        if not export:
            environment.install(wheel, "cpu,cli")
        environment.ask_command(made)
    except (ReleaseError, SbomError) as error:
        return Verdict(python, "fails", reason=str(error), seconds=round(time.perf_counter() - started, 1)), bom
    seconds = round(time.perf_counter() - started, 1)
    verdict = Verdict(python, "answers", exported=export, kernels=kernels, seconds=seconds)
    return (verdict if export else _with_exporter(verdict, environment.interpreter.minor)), bom


def _with_exporter(verdict: Verdict, minor: str) -> Verdict:
    """Add whether the exporter's packages can be had."""
    looked = look_for_wheels(minor)
    if looked.state == "fails":
        return replace(looked, python=verdict.python)
    return replace(verdict, packages=looked.packages, reason=f"the exporter's {looked.packages} packages have wheels")


def look_for_wheels(minor: str) -> Verdict:
    """Ask the index for a wheel of every package of the extras `cpu` and `export`.

    What torch asks for is left out: gigabytes of CUDA, which its builds for CPUs do not ask for.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(each for extra in ("cpu", "cli", "export") for each in extras[extra])]
    constraints = ("-c", str(ROOT / "infra" / "constraints.txt"))
    wanted = [each for each in wanted if not each.startswith("qwonnx[")]
    alone = [each for each in wanted if each.startswith(_ASK_FOR_TORCH)]
    try:
        found = [
            *resolve([each for each in wanted if each not in alone], minor, "x86_64", *constraints),
            *resolve(alone, minor, "x86_64", *constraints, "--no-deps"),
        ]
    except SystemExit as error:
        return Verdict(minor, "fails", reason=" / ".join(str(error).split("\n")[-2:])[:400])
    return Verdict(minor, "wheels exist", packages=len(found), reason="no interpreter here")


def _write(out: Path, made: Distributions, version: str, packages: Path, bom: Bom) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for path in (made.sdist, made.wheel):
        (out / path.name).write_bytes(path.read_bytes())
    (out / f"qwonnx-{version}.cdx.json").write_text(json.dumps(bom, indent=1) + "\n", encoding="utf-8")
    (out / f"qwonnx-{version}.NOTICE").write_text(notice(packages, bom), encoding="utf-8")


def _check_version(version: str) -> None:
    """A release has an entry in the changelog; a version in progress has "Unreleased"."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if f"## [{version}]" not in changelog:
        print(f"note: CHANGELOG.md has no entry {version} yet; a release needs one")


def _this_python() -> Interpreter:
    known = look_at(Path(sys.executable))
    if known is None:
        raise ReleaseError(f"{sys.executable} cannot make virtual environments")
    return known


def _order(minor: str) -> tuple[int, ...]:
    return tuple(map(int, minor.split(".")))


def _row(verdict: Verdict) -> str:
    notes = [
        *(["exported the miniature"] if verdict.exported else []),
        *(["native kernels"] if verdict.kernels else []),
        *([verdict.reason] if verdict.reason else []),
    ]
    return f"Python {verdict.python:8} {verdict.state:13} {verdict.seconds:6.0f} s  {', '.join(notes)}"


if __name__ == "__main__":
    main()
