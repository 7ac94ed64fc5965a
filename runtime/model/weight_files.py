"""An artifact's weight files while a session maps them: what of them is in memory, and whether they were changed.

ONNX Runtime maps the files, and native kernels read them there. A page that is read after its file was cut short ends
the process with SIGBUS: no program can catch this in a kernel. So the sizes are compared when the files are opened, the
files stay open, and the engine compares them again while it runs. A file that is replaced (renamed over, or removed)
does no harm, because the mapping keeps the old one.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from qwonnx.runtime.artifact.file_names import is_weight_file
from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.artifact.manifest import ArtifactFileError
from qwonnx.runtime.errors import SessionError, SettingsError
from qwonnx.runtime.machine import free_memory_bytes
from qwonnx.runtime.settings import Residency

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 1.0
_MAPS = Path("/proc/self/maps")
_WILLNEED, _POPULATE_READ = 3, 22  # of Linux's madvise(2)


class MappedRange(Struct, frozen=True):
    """A part of a weight file in the process's memory: first address and bytes."""

    address: int
    num_bytes: int


class WeightFiles:
    """The weight files of an opened artifact, held open.

    Raises:
        ArtifactFileError: a file cannot be opened, or has another size than the manifest says.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._sizes: dict[int, int] = {}  # by descriptor
        self._paths: dict[int, Path] = {}
        self.close = weakref.finalize(self, _close, self._sizes)
        for entry in artifact.manifest.files:
            if is_weight_file(entry.path):
                path = artifact.folder / entry.path
                try:
                    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                except OSError as error:
                    raise ArtifactFileError(f"{path} cannot be read ({error.strerror}): copy it again") from error
                self._sizes[descriptor], self._paths[descriptor] = entry.size, path
        self._checked_at = time.monotonic()
        try:
            self._compare()
        except SessionError as error:
            raise ArtifactFileError(str(error)) from error

    def check(self) -> None:
        """Compare sizes again; does nothing within a second of the last time.

        Raises:
            SessionError: a file was cut or grew.
        """
        now = time.monotonic()
        if now - self._checked_at >= _CHECK_SECONDS:
            self._checked_at = now
            self._compare()

    def check_at_once(self) -> None:
        """Have the next check() compare sizes, whatever the clock says: it may have jumped."""
        self._checked_at = float("-inf")

    def check_mapped(self) -> None:
        """Call after a session was created: the files that it found by name are those that are open here.

        Raises:
            SessionError: a file was replaced, cut, or grew meanwhile.
        """
        self._compare()
        for descriptor, path in self._paths.items():
            try:
                same = os.path.samestat(os.fstat(descriptor), os.stat(path))
            except OSError:
                same = False
            if not same:
                raise SessionError(f"{path} was replaced while it was opened: start again")

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(self._sizes.values())

    @property
    def are_writable(self) -> bool:
        """Whether the process owns the files or may write them: only then does the system tell what lies in memory."""
        try:
            return all(
                os.fstat(descriptor).st_uid == os.geteuid() or os.access(path, os.W_OK)
                for descriptor, path in self._paths.items()
            )
        except (OSError, AttributeError):  # Windows has no user ids
            return False

    def make_resident(self, residency: Residency, parts: Sequence[MappedRange] | None = None) -> None:
        """Bring what the session maps into memory. willneed returns at once and goes on in a thread.

        Args:
            residency: how.
            parts: of mapped_ranges(); None: all of them.

        Raises:
            SettingsError: the system or its limits do not allow it.
        """
        if residency is Residency.MAP or not self._paths:
            return
        if residency is Residency.WILLNEED:
            threading.Thread(target=self._read_ahead, args=(parts,), name="qwonnx-read-ahead", daemon=True).start()
            return
        if not _MAPS.exists():
            raise SettingsError(f"weights_residency is {residency}, which needs Linux: choose map or willneed")
        for mapped in self.mapped_ranges() if parts is None else parts:
            _bring_in(mapped, residency)

    def mapped_ranges(self) -> list[MappedRange]:
        """What the process maps of the files, in the order of the manifest; nothing where the system does not tell."""
        order = {os.path.realpath(path): index for index, path in enumerate(self._paths.values())}
        try:
            lines = _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError:
            return []
        found = [(order[path], mapped) for path, mapped in _ranges(lines) if path in order]
        return [mapped for _, mapped in sorted(found, key=lambda each: (each[0], each[1].address))]

    def _read_ahead(self, parts: Sequence[MappedRange] | None = None) -> None:
        """As much as fits free memory, so that reading the end of the weights does not drop their beginning."""
        ranges, room = self.mapped_ranges() if parts is None else parts, free_memory_bytes()
        for mapped in ranges:
            if room is not None:
                room -= mapped.num_bytes
                if room < 0:
                    logger.info("the weights do not fit free memory: the rest is read when it is needed")
                    return
            _madvise(mapped, _WILLNEED)

    def _compare(self) -> None:
        for descriptor, size in self._sizes.items():
            found = os.fstat(descriptor).st_size
            if found != size:
                raise SessionError(
                    f"{self._paths[descriptor]} has {found} bytes where the manifest says {size}: copy the artifact"
                    " again (to replace an artifact that is served, write beside it and rename)"
                )


def announce(artifact: Artifact, residency: Residency) -> None:
    """Ask the system to read an artifact's weight files while the process still starts. Returns at once.

    Only for willneed, and if all of them fit free memory. What cannot be done here is left to make_resident().
    """
    if residency is Residency.WILLNEED and hasattr(os, "posix_fadvise"):
        paths = [artifact.folder / entry.path for entry in artifact.manifest.files if is_weight_file(entry.path)]
        size = sum(entry.size for entry in artifact.manifest.files)
        if size <= (free_memory_bytes() or 0):
            threading.Thread(target=_announce, args=(paths,), name="qwonnx-announce", daemon=True).start()


def _announce(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(OSError):  # opening it for the session tells what is wrong
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)


def _close(descriptors: dict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[0])


def _ranges(lines: Sequence[str]) -> Iterator[tuple[str, MappedRange]]:
    """Path and range of each line of /proc/self/maps that has a path."""
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6:
            start, _, end = fields[0].partition("-")
            yield fields[5], MappedRange(int(start, 16), int(end, 16) - int(start, 16))


def _bring_in(mapped: MappedRange, residency: Residency) -> None:
    """
    Raises:
        SettingsError: the system refuses.
    """
    if residency is Residency.POPULATE:
        if code := _madvise(mapped, _POPULATE_READ):
            remedy = "Linux before 5.14 cannot do this: choose willneed" if code == errno.EINVAL else "choose willneed"
            raise SettingsError(
                f"weights_residency is populate, and the system refuses ({os.strerror(code)}): {remedy}"
            )
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(mapped.address), ctypes.c_size_t(mapped.num_bytes)):
        reason = os.strerror(ctypes.get_errno())
        raise SettingsError(
            f"weights_residency is lock, and the system refuses ({reason}): raise the limit of locked memory"
            " (ulimit -l), or choose populate"
        )


def _madvise(mapped: MappedRange, advice: int) -> int:
    """The error's number, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.madvise(ctypes.c_void_p(mapped.address), ctypes.c_size_t(mapped.num_bytes), advice)
    return ctypes.get_errno() if failed else 0
