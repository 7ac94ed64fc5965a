"""Text files that are given to commands: read whole, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwonnx.handlers.cli import text_file
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.text_file import read_text

pytestmark = pytest.mark.fast


def test_a_text_is_read_to_the_last_character(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("é\r\n🙂\n".encode())
    assert read_text(path) == "é\r\n🙂\n", "line breaks are as they are"
    path.write_bytes(b"")
    assert read_text(path) == ""


def test_what_cannot_be_read_is_said_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"cannot read .*missing \(No such file or directory\)"):
        read_text(tmp_path / "missing")
    with pytest.raises(CommandError, match=r"cannot read .* \(Is a directory\)"):
        read_text(tmp_path)


@pytest.mark.parametrize("content", [b"\xff", b"caf\xe9", "a".encode("utf-16"), b"\xed\xa0\x80"])
def test_another_encoding_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(CommandError, match="is not UTF-8 text"):
        read_text(path)


def test_a_file_may_have_so_many_bytes_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "MAX_BYTES", 4)
    path = tmp_path / "text"
    path.write_text("abcd")
    assert read_text(path) == "abcd"
    path.write_text("abcde")
    with pytest.raises(CommandError, match="is larger than"):
        read_text(path)
