"""A store: the files of one folder elsewhere, by name, and ranges of their bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from qwonnx.export.errors import AccessError, TensorFormatError


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A file in a store.

    version changes when the content does: a version id, a generation, an ETag or a time, as the store has it. sha256 is
    that of the content if the store states it.
    """

    name: str  # relative to the folder, with "/" between parts
    size: int  # bytes
    version: str
    sha256: str | None = None


class Store(Protocol):
    """The folder. Methods are thread-safe; they try again what may succeed later."""

    @property
    def shown(self) -> str:
        """The folder's URL or name, for display."""
        ...

    def objects(self) -> Mapping[str, StoredObject]:
        """The folder's files by name, and those of its folders that matter.

        Raises:
            CheckpointError: the folder does not exist or may not be read, or the store cannot be reached.
        """
        ...

    def unlisted(self, names: Sequence[str]) -> Mapping[str, StoredObject]:
        """Those of these files that exist, where a place has no listing; nothing where it has one.

        Raises:
            CheckpointError: see `objects`.
        """
        ...

    def read(self, found: StoredObject, start: int, end: int) -> bytes:
        """Bytes from `start` to `end` of a file, exactly so many.

        Raises:
            CheckpointError: the file has gone or changed, may not be read, or the store cannot be reached.
        """
        ...


def unreachable(shown: str, reason: str) -> AccessError:
    """The error of a store that failed to the last try."""
    return AccessError(
        f"{shown} cannot be read ({reason}), after several tries: check the network and the store, and run the command"
        " again"
    )


def changed(shown: str) -> TensorFormatError:
    """The error of a file that was replaced while it was read: what is written of it is of no use."""
    return TensorFormatError(f"{shown} changed while it was read: let whatever writes it finish, and start over")


def not_allowed(shown: str, remedy: str) -> AccessError:
    return AccessError(f"{shown} may not be read: {remedy}")


def missing(shown: str, remedy: str) -> AccessError:
    return AccessError(f"{shown} does not exist: {remedy}")
