"""Baked prefixes: states of prompt beginnings, stored in the artifact's folder so that no process computes them again.

    prefixes/NAME.capsule     an uncompressed capsule; NAME is the hash of artifact and tokens (capsule.beginning_name)

A prefix is bound to the artifact's id, the hash of the manifest. So it cannot be part of the manifest, and each file
carries its own hash. The runtime maps files read-only and uses their arrays in place. It ignores a file that it cannot
use and computes the prompt instead. Like weights, a mapped file must not be truncated or overwritten, so a rename puts
a complete file in place. A name that begins with a dot is a file that is still being written.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.cache.capsule import Capsule, beginning_name, decode
from qwonnx.runtime.errors import CapsuleError
from qwonnx.runtime.quantities import bytes_text

logger = logging.getLogger(__name__)

FOLDER = "prefixes"

# Limits on what opening an artifact reads. A prompt of 4,000 tokens takes 0.2 GB for 35B-A3B.
MAX_FILES = 64
MAX_TOTAL_BYTES = 16 << 30

_NAME = re.compile(r"[0-9a-f]{64}\.capsule")


class PrefixFile(Struct, frozen=True):
    """A file among the baked prefixes. If capsule is None, refusal says why it is not used."""

    path: Path
    num_bytes: int
    capsule: Capsule | None
    refusal: str = ""


def load(artifact: Artifact, max_tokens: int) -> list[Capsule]:
    """Map the baked prefixes of an artifact; log those that cannot be used.

    Args:
        artifact: an opened artifact.
        max_tokens: limit for the tokens of a prefix.
    """
    usable = []
    for file in prefix_files(artifact, max_tokens):
        if file.capsule is None:
            logger.warning("the baked prefix %s is not used: %s", file.path, file.refusal)
        else:
            usable.append(file.capsule)
    if usable:
        logger.info("baked prefixes: %d, of %s tokens", len(usable), ", ".join(str(len(c.token_ids)) for c in usable))
    return usable


def prefix_files(artifact: Artifact, max_tokens: int) -> Iterator[PrefixFile]:
    """All files in the folder, sorted by name. A file of the right size is read whole, to check its hash."""
    folder = artifact.folder / FOLDER
    room = MAX_TOTAL_BYTES
    try:
        for number, path in enumerate(_entries(folder)):
            num_bytes = path.lstat().st_size
            try:
                if number >= MAX_FILES:
                    raise CapsuleError(f"the folder has more than {MAX_FILES} files: remove some")
                if num_bytes > room:
                    raise CapsuleError(f"the files have more than {bytes_text(MAX_TOTAL_BYTES)} together: remove some")
                capsule = _open(path, artifact, max_tokens)
            except CapsuleError as error:
                yield PrefixFile(path, num_bytes, None, str(error))
            else:
                room -= num_bytes
                yield PrefixFile(path, num_bytes, capsule)
    except CapsuleError as error:
        yield PrefixFile(folder, 0, None, str(error))
    except OSError as error:
        yield PrefixFile(folder, 0, None, f"it cannot be read ({error.strerror}): copy the artifact again")


def prefix_path(artifact: Artifact, token_ids: Sequence[int]) -> Path:
    """Path of the baked prefix of these tokens, whether it exists or not."""
    return artifact.folder / FOLDER / f"{beginning_name(artifact.id, token_ids)}.capsule"


def write_prefix(path: Path, data: bytes) -> None:
    """Write a capsule to a path of prefix_path(), atomically; an existing file is replaced.

    Raises:
        CapsuleError: the folder is a link, or full.
        OSError: the file cannot be written.
    """
    folder = path.parent
    folder.mkdir(exist_ok=True)
    others = [each.lstat().st_size for each in _entries(folder) if each != path]
    if len(others) >= MAX_FILES or sum(others) + len(data) > MAX_TOTAL_BYTES:
        limits = f"at most {MAX_FILES} files and {bytes_text(MAX_TOTAL_BYTES)} together"
        raise CapsuleError(f"{folder} is full ({limits}): remove some")
    part = folder / f".{path.name}.{os.urandom(4).hex()}"
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def remove_others(artifact: Artifact, kept: Collection[Path]) -> list[Path]:
    """Remove all baked prefixes except these, and leftovers of interrupted writes; return the removed paths.

    Raises:
        CapsuleError: the folder is a link.
        OSError: a file cannot be removed.
    """
    folder = artifact.folder / FOLDER
    going = [path for path in _entries(folder, hidden=True) if path not in kept]
    for path in going:
        path.unlink()
    return going


def _entries(folder: Path, *, hidden: bool = False) -> list[Path]:
    """Paths in the folder, sorted; empty if the folder does not exist.

    Raises:
        CapsuleError: it is a link.
        OSError: it cannot be read, or is not a folder.
    """
    if folder.is_symlink():
        raise CapsuleError(f"{folder} is a link, which is not followed: remove it")
    if not folder.exists():
        return []
    return sorted(path for path in folder.iterdir() if hidden or not path.name.startswith("."))


def _open(path: Path, artifact: Artifact, max_tokens: int) -> Capsule:
    """Map a file and check it, its size before its contents.

    Raises:
        CapsuleError: it cannot be used.
    """
    if not _NAME.fullmatch(path.name):
        raise CapsuleError("its name is not a baked prefix's: remove it")
    if path.is_symlink() or not path.is_file():
        raise CapsuleError("it is not a regular file, and links are not followed: remove it")
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # mmap raises a ValueError for an empty file
        raise CapsuleError(f"it cannot be mapped ({error}): bake it again") from error
    capsule = decode(mapped, artifact.id, artifact.decoder.states, max_tokens)
    if path != prefix_path(artifact, capsule.token_ids):
        raise CapsuleError("its name does not match its tokens: bake it again")
    return capsule
