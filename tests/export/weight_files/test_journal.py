"""The journal: after any crash, the lines that are read are a prefix of those that were written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qwonnx.export.weight_files import journal as journal_module
from qwonnx.export.weight_files.journal import Journal, Mark, Noted

pytestmark = pytest.mark.fast

FINGERPRINT = {"qwonnx": "1", "config": {"eps": 1e-06, "name": "\u4e2d", "rules": [1, None, True]}}


@contextmanager
def _open(path: Path) -> Iterator[Journal]:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield Journal(file)
    finally:
        os.close(file)


def _mark(shard: int, size: int) -> Mark:
    return Mark(shard, (Noted(size, "c" * 64), Noted(size // 8, "d" * 64)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with four lines."""
    path = tmp_path / "journal"
    with _open(path) as journal:
        journal.start(FINGERPRINT)
        journal.begin_layout("layout")
        journal.add_mark(_mark(1, 100))
        journal.add_mark(_mark(2, 50))
    return path


def test_what_was_written_is_read_again_and_goes_on(path: Path) -> None:
    with _open(path) as journal:
        assert journal.fingerprint == FINGERPRINT
        assert journal.layout == "layout"
        assert journal.has_marks
        journal.begin_layout("layout")
        journal.add_mark(_mark(1, 90))
    with _open(path) as journal:
        assert journal.marks(1) == [_mark(1, 90), _mark(1, 100)]  # in the order of the bytes
        assert journal.marks(2) == [_mark(2, 50)]
        assert journal.marks(3) == []
    assert path.read_bytes().count(b"\n") == 5


def test_cut_anywhere_it_has_its_whole_lines_and_nothing_else(path: Path) -> None:
    content = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        with _open(path) as journal:
            lines = sum(end <= size for end in ends)
            assert (journal.fingerprint is not None) == (lines > 0)
            assert (journal.layout is not None) == (lines > 1)
            assert len(journal.marks(1)) + len(journal.marks(2)) == max(0, lines - 2)
        assert path.read_bytes() == content[: ([0, *ends])[lines]]


@pytest.mark.parametrize("line", [0, 1, 2, 3])
def test_a_byte_that_changed_ends_it_before_its_line(path: Path, line: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    for index in range(len(lines[line])):
        broken = bytearray(lines[line])
        broken[index] ^= 0x04
        path.write_bytes(b"".join([*lines[:line], bytes(broken), *lines[line + 1 :]]))
        with _open(path) as journal:
            assert len(journal.marks(1)) + len(journal.marks(2)) == max(0, line - 2)
        assert path.read_bytes() == b"".join(lines[:line])


def test_another_layout_drops_the_marks_and_keeps_the_fingerprint(path: Path) -> None:
    with _open(path) as journal:
        journal.begin_layout("other")
        assert not journal.has_marks
    with _open(path) as journal:
        assert (journal.fingerprint, journal.layout, journal.has_marks) == (FINGERPRINT, "other", False)


def test_what_is_no_journal_or_too_large_to_be_one_is_empty(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_MAX_JOURNAL_BYTES", path.stat().st_size - 1)
    with _open(path) as journal:
        assert journal.fingerprint is None
    path.write_bytes(b"\xff\xfe[[[[" * 100)
    with _open(path) as journal:
        assert journal.fingerprint is None
    assert path.read_bytes() == b""
