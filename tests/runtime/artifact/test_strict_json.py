"""Untrusted JSON is one object, or an error with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwonnx.runtime.artifact.strict_json import StrictJsonError, parse_object, read_object

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[1]", "not a JSON object"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"a": {"b": 1, "b": 1}}', "'b' appears twice"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
        (b'{"a": "\xff"}', "can't decode"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
def test_what_is_not_one_sound_object_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(StrictJsonError, match=reason) as caught:
        parse_object(content)
    assert "\n" not in str(caught.value)


def test_a_sound_object_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2.5, null], "ü": {}}', encoding="utf-8")
    assert read_object(path, max_bytes=100) == {"a": [1, 2.5, None], "ü": {}}


def test_no_more_than_the_bound_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"{}" + b" " * 99)
    with pytest.raises(StrictJsonError, match="longer than 100 bytes"):
        read_object(path, max_bytes=100)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(StrictJsonError, match="directory"):
        read_object(tmp_path, max_bytes=100)
