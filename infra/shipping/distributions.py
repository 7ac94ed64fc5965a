"""The source distribution and the wheel of a commit, built so that whoever builds them again gets the same bytes.

The sources are those of the commit, not of the working tree. Two builds differ in the folder, the time zone and the
order of sets. What builds is the lock infra/locks/build.txt, and the Python and compiler of this machine.
"""

from __future__ import annotations

import email.parser
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from packaging.metadata import ExceptionGroup, Metadata

from infra.shipping.image_root import ROOT
from infra.shipping.lock_file import lock_path

_BACKEND = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
_MARKDOWN = "text/markdown"
_LARGEST_DIFFERENCES = 5


class ReleaseError(Exception):
    """What is released would be wrong; the message says what, in one line."""


@dataclass(frozen=True, slots=True)
class Distributions:
    """Files of one build. of_sdist: the wheel that the source distribution gives."""

    sdist: Path
    wheel: Path
    of_sdist: Path


def full_name(commit: str) -> str:
    """The hash of what HEAD, a branch or a tag is now: a commit that is made meanwhile shall not be half of a release.

    Raises:
        ReleaseError: there is no such commit.
    """
    return _git("rev-parse", "--verify", f"{commit}^{{commit}}").strip()


def commit_time(commit: str) -> int:
    """Seconds since 1970, for SOURCE_DATE_EPOCH."""
    return int(_git("show", "--no-patch", "--format=%ct", commit).strip())


def build(commit: str, work: Path, builder: Path, variation: int) -> Distributions:
    """Build everything from a commit.

    Args:
        commit: of this repository.
        work: an empty folder.
        builder: an interpreter that has setuptools.
        variation: any number; another one changes what must not change the result.

    Raises:
        ReleaseError: a build failed.
    """
    source = work / "/".join(["source"] * (variation + 1))
    source.mkdir(parents=True)
    archive = work / "source.tar"
    _git("archive", "--output", str(archive), commit)
    _unpack(archive, source)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "SOURCE_DATE_EPOCH": str(commit_time(commit)),
        "PYTHONHASHSEED": str(variation),
        "TZ": ("UTC", "Asia/Tokyo")[variation % 2],
    }
    out = work / "dist"
    _run_backend(builder, "build_sdist", source, out, environment)
    _run_backend(builder, "build_wheel", source, out, environment)
    sdist = next(out.glob("*.tar.gz"))
    _unpack(sdist, work / "unpacked")
    (unpacked,) = (work / "unpacked").iterdir()
    _run_backend(builder, "build_wheel", unpacked, work / "of-sdist", environment)
    return Distributions(sdist, next(out.glob("*.whl")), next((work / "of-sdist").glob("*.whl")))


def install_builder(pip: tuple[str, ...]) -> None:
    """Install the lock of what builds, checked by its hashes.

    Raises:
        ReleaseError: pip refused.
    """
    command = [*pip, "install", "--quiet", "--no-deps", "--require-hashes", "-r", str(lock_path("build"))]
    if subprocess.call(command):
        raise ReleaseError("pip cannot install infra/locks/build.txt: its error is above")


def differences(one: Path, other: Path) -> list[str]:
    """Members of two archives that differ; nothing if the files are equal byte for byte."""
    if one.read_bytes() == other.read_bytes():
        return []
    left, right = _members(one), _members(other)
    names = sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
    return names[:_LARGEST_DIFFERENCES] or ["the archive itself: times, modes or order of its members"]


def check_metadata(made: Distributions, forbidden: str) -> str:
    """Check what an index and pip read. Returns the version.

    Args:
        made: the files.
        forbidden: a path of this machine, which no file may contain.

    Raises:
        ReleaseError: a field is wrong, or is missing, or the files disagree.
    """
    with zipfile.ZipFile(made.wheel) as packed:
        (folder,) = {name.partition("/")[0] for name in packed.namelist() if ".dist-info/" in name}
        text = packed.read(f"{folder}/METADATA")
        if f"{folder}/licenses/LICENSE" not in packed.namelist():
            raise ReleaseError(f"{made.wheel.name} has no licence")
        if packed.testzip() is not None:
            raise ReleaseError(f"{made.wheel.name} is damaged")
    try:
        metadata = Metadata.from_email(text, validate=True)
    except ExceptionGroup as error:
        raise ReleaseError(f"{made.wheel.name}: {'; '.join(map(str, error.exceptions))}") from error
    if _pkg_info(made.sdist) != text:
        raise ReleaseError("the source distribution's PKG-INFO is not the wheel's METADATA")
    content_type = email.parser.BytesParser().parsebytes(text)["Description-Content-Type"] or ""
    if not content_type.startswith(_MARKDOWN) or not metadata.description:
        raise ReleaseError(f"the description is {content_type!r}, not the README as {_MARKDOWN}")
    if metadata.license_expression != "Apache-2.0" or not metadata.requires_python or not metadata.summary:
        raise ReleaseError("licence, summary or requires-python is missing")
    stem = f"{metadata.name}-{metadata.version}"
    if made.sdist.name != f"{stem}.tar.gz" or not made.wheel.name.startswith(f"{stem}-"):
        raise ReleaseError(f"names disagree with the metadata: {made.sdist.name}, {made.wheel.name}, {stem}")
    for path in (made.sdist, made.wheel):
        found = [name for name, content in _members(path).items() if forbidden.encode() in content]
        if found:
            raise ReleaseError(f"{path.name} has a path of this machine in {', '.join(found[:_LARGEST_DIFFERENCES])}")
    return str(metadata.version)


def _pkg_info(sdist: Path) -> bytes:
    return next(content for name, content in _members(sdist).items() if name.count("/") == 1 and "PKG-INFO" in name)


def _members(path: Path) -> dict[str, bytes]:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as packed:
            return {name: packed.read(name) for name in packed.namelist()}
    with tarfile.open(path) as archive:
        opened = {member.name: archive.extractfile(member) for member in archive.getmembers() if member.isfile()}
        return {name: file.read() for name, file in opened.items() if file is not None}


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as packed:
        packed.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 has none
        packed.extractall(folder)


def _run_backend(builder: Path, hook: str, source: Path, out: Path, environment: dict[str, str]) -> None:
    out.mkdir(exist_ok=True)
    command = [str(builder), "-c", _BACKEND, hook, str(out)]
    run = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise ReleaseError(f"{hook} failed: {run.stderr.strip()[-500:]}")
    if "without native kernels" in run.stderr:
        print(run.stderr.strip().splitlines()[-1], file=sys.stderr)


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise ReleaseError(f"git {arguments[0]} failed: {run.stderr.strip()}")
    return run.stdout
