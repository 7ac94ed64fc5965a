"""The machine code of one architecture is kept, and what is no fat binary stays as it is."""

from __future__ import annotations

import struct

import pytest

from infra.gpu.fat_binary import fat_binaries, keep_architecture

pytestmark = pytest.mark.fast

MAGIC = bytes.fromhex("50ed55ba")
PTX, CODE = 1, 2


def entry(kind: int, architecture: int, payload: bytes) -> bytes:
    header = struct.pack("<HHIQ", kind, 1, 64, len(payload)).ljust(28, b"h") + struct.pack("<I", architecture)
    return header.ljust(64, b"h") + payload


def fat_binary(*entries: bytes) -> bytes:
    content = b"".join(entries)
    return MAGIC + struct.pack("<HHQ", 1, 16, len(content)) + content


def library(*binaries: bytes) -> bytearray:
    """Other bytes around the fat binaries, and the magic number by chance, too near to the end for a size."""
    return bytearray(b"elf" + b"text".join(binaries) + b"data" + MAGIC + b"\x01\x00\x10\x00" + b"\xff" * 8)


def test_entries_are_found_with_their_architectures() -> None:
    found = list(fat_binaries(library(fat_binary(entry(CODE, 80, b"a"), entry(PTX, 90, b"bc")), fat_binary())))
    assert [[(each.kind, each.architecture, each.num_bytes) for each in entries] for entries in found] == [
        [(CODE, 80, 1), (PTX, 90, 2)],
        [],
    ]


def test_code_of_others_becomes_zeros_where_the_wanted_code_is_beside_it() -> None:
    both = fat_binary(entry(CODE, 80, b"eighty"), entry(CODE, 90, b"ninety"), entry(PTX, 90, b"text90"))
    only = fat_binary(entry(CODE, 75, b"seventyfive"))
    content = library(both, only)
    whole = bytes(content)
    assert keep_architecture(content, 90) == len(b"ninety")
    assert content == whole.replace(b"eighty", bytes(6)).replace(b"text90", bytes(6))


def test_an_architecture_that_is_not_there_keeps_nothing() -> None:
    content = library(fat_binary(entry(CODE, 80, b"eighty")))
    assert keep_architecture(content, 100) == 0
    assert b"eighty" in content
