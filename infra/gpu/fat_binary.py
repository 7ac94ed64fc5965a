"""Leave one architecture's machine code in a CUDA library, so that it compresses to a quarter.

A fat binary is a header (magic, version, its own size, the size behind it) and entries, each a header and a payload:
PTX or machine code for one compute capability. Code of others becomes zeros where the wanted code is beside it. Headers
and sizes stay, so the driver finds the entry of its device as before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_MAGIC = bytes.fromhex("50ed55ba")
_HEADER = struct.Struct("<4sHHQ")
_ENTRY = struct.Struct("<HHIQ")
_ARCHITECTURE = 28  # its place in an entry's header
_MACHINE_CODE = 2  # an entry's kind; 1 is PTX


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a fat binary: where its payload is, and what it is for (90: compute capability 9.0)."""

    kind: int
    architecture: int
    start: int
    num_bytes: int


def fat_binaries(library: bytes | bytearray) -> Iterator[list[Entry]]:
    """The entries of every fat binary in a library."""
    place = library.find(_MAGIC)
    while place >= 0:
        _, version, header, size = _HEADER.unpack_from(library, place)
        if (version, header) != (1, _HEADER.size) or place + header + size > len(library):
            place = library.find(_MAGIC, place + 1)  # the same bytes by chance
            continue
        entries, start, end = [], place + header, place + header + size
        while start < end:
            kind, _, header, size = _ENTRY.unpack_from(library, start)
            (architecture,) = struct.unpack_from("<I", library, start + _ARCHITECTURE)
            entries.append(Entry(kind, architecture, start + header, size))
            start += header + size
        yield entries
        place = library.find(_MAGIC, end)


def keep_architecture(library: bytearray, architecture: int) -> int:
    """Zero the machine code of other architectures, in place.

    Returns:
        the bytes of kept code; 0 means that the library has none for this architecture.
    """
    kept = 0
    for entries in fat_binaries(library):
        wanted = [each for each in entries if (each.kind, each.architecture) == (_MACHINE_CODE, architecture)]
        kept += sum(each.num_bytes for each in wanted)
        for each in entries if wanted else ():
            if each not in wanted:
                library[each.start : each.start + each.num_bytes] = bytes(each.num_bytes)
    return kept
