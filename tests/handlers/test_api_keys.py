"""The file of keys: names and keys, one owner each, and no key in a message."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from qwonnx.handlers.api_keys import ApiKey, api_keys
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.errors import SettingsError

pytestmark = pytest.mark.fast


def written(folder: Path, text: str, mode: int = 0o600) -> ServerSettings:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(mode)
    return ServerSettings(api_keys=str(path))


def test_without_a_key_everybody_may_in_and_one_key_shares_all() -> None:
    assert api_keys(ServerSettings()) == ()
    assert api_keys(ServerSettings(api_key="s3cret")) == (ApiKey("default", "s3cret", ""),)


def test_each_key_of_a_file_has_an_owner_that_only_the_key_determines(tmp_path: Path) -> None:
    settings = written(tmp_path, "# users\n\n billing : abc:def \nsupport: ghi\n")
    keys = api_keys(replace(settings, api_key="s3cret"))
    assert [(each.name, each.key) for each in keys] == [
        ("default", "s3cret"),
        ("billing", "abc:def"),
        ("support", "ghi"),
    ]
    assert len({each.owner for each in keys} - {""}) == 3
    assert api_keys(written(tmp_path, "other: ghi\n"))[0].owner == keys[2].owner
    assert not any(each.key in each.owner or each.key in repr(each) for each in keys)


def test_keys_that_share_have_no_owner(tmp_path: Path) -> None:
    settings = replace(written(tmp_path, "a: one\nb: two\n"), share_prefixes=True)
    assert [each.owner for each in api_keys(settings)] == ["", ""]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no key"),
        ("# nothing\n", "has no key"),
        ("S3CRET\n", "line 1 .*is not `name: key`"),
        ("a: one\n: S3CRET\n", "line 2"),
        ("a:\n", "line 1"),
        ("a: S3CRET with spaces\n", "line 1"),
        ("a b: S3CRET\n", "line 1"),
        ("a: S3CRÉT\n", "line 1"),
        ("a: S3CRET\na: other\n", "the name of 'a' twice"),
        ("a: S3CRET\nb: S3CRET\n", "the key of 'a' twice"),
    ],
)
def test_another_file_is_refused_and_no_key_is_told(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        api_keys(written(tmp_path, text))
    assert "S3CR" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe: x\n", b"#" * (1 << 20) + b"#\n"])
def test_what_is_not_such_a_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(SettingsError, match="keys"):
        api_keys(ServerSettings(api_keys=str(tmp_path / "keys")))
    with pytest.raises(SettingsError, match="cannot read the keys"):
        api_keys(ServerSettings(api_keys=str(tmp_path)))


def test_a_file_that_others_can_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        api_keys(written(tmp_path, "a: one\n"))
        assert caplog.text == ""
        api_keys(written(tmp_path, "a: one\n", 0o644))
    assert "chmod 600" in caplog.text
