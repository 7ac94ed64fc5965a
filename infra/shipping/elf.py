"""Which libraries an ELF file asks the loader for, read from its dynamic section (64 bits, little-endian).

A machine that builds images need not have binutils; tests/infra/shipping/test_elf.py compares with `readelf -d`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_ENTRY = struct.Struct("<QQ")
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SONAME = 0, 1, 5, 14
_CLASS_64, _LITTLE = 2, 1


@dataclass(frozen=True, slots=True)
class Linkage:
    """soname: the library's own name, or None. needed: names that the loader must find."""

    soname: str | None
    needed: tuple[str, ...]


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def read_linkage(path: Path) -> Linkage:
    """Read one file.

    Raises:
        ValueError: it is no ELF file of 64 bits, or is cut off.
    """
    data = path.read_bytes()
    if data[:4] != b"\x7fELF" or data[4] != _CLASS_64 or data[5] != _LITTLE:
        raise ValueError(f"{path} is no little-endian ELF file of 64 bits")
    try:
        return _linkage(data)
    except (struct.error, ValueError) as error:
        raise ValueError(f"{path} is no whole ELF file: {error}") from error


def _linkage(data: bytes) -> Linkage:
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    headers = [_PROGRAM_HEADER.unpack_from(data, table + size * number) for number in range(count)]
    # (kind, flags, offset, virtual address, physical address, bytes in the file, bytes in memory, alignment)
    dynamic = next((header for header in headers if header[0] == _PT_DYNAMIC), None)
    if dynamic is None:
        return Linkage(None, ())
    entries = list(_entries(data, dynamic[2], dynamic[5]))
    address = next((value for tag, value in entries if tag == _DT_STRTAB), None)
    if address is None:
        return Linkage(None, ())
    held = next(h for h in headers if h[0] == _PT_LOAD and h[3] <= address < h[3] + h[5])
    strings = address - held[3] + held[2]

    def name(offset: int) -> str:
        start = strings + offset
        return data[start : data.index(b"\0", start)].decode()

    soname = next((name(value) for tag, value in entries if tag == _DT_SONAME), None)
    return Linkage(soname, tuple(name(value) for tag, value in entries if tag == _DT_NEEDED))


def _entries(data: bytes, offset: int, size: int) -> Iterator[tuple[int, int]]:
    for place in range(offset, offset + size, _ENTRY.size):
        tag, value = _ENTRY.unpack_from(data, place)
        if tag == _DT_NULL:
            return
        yield tag, value
