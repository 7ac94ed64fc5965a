"""The file of keys: names and keys, one owner each, and no key in a message."""

from __future__ import annotations

import hashlib
import hmac
import logging
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from qwonnx.handlers.http.api_keys import ApiKey, KeyRing, api_keys, digest_of
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
    assert api_keys(ServerSettings(api_key="s3cret")) == (ApiKey("default", digest_of(b"s3cret"), ""),)


def test_each_key_of_a_file_has_an_owner_that_only_the_key_determines(tmp_path: Path) -> None:
    settings = written(tmp_path, "# users\n\n billing : abc:def \nsupport: ghi\n")
    keys = api_keys(replace(settings, api_key="s3cret"))
    assert [(each.name, each.digest) for each in keys] == [
        ("default", digest_of(b"s3cret")),
        ("billing", digest_of(b"abc:def")),
        ("support", digest_of(b"ghi")),
    ]
    assert len({each.owner for each in keys} - {""}) == 3
    assert api_keys(written(tmp_path, "other: ghi\n"))[0].owner == keys[2].owner
    # Stored states are found by it, so it never changes.
    assert keys[2].owner == hashlib.sha256(b"qwonnx owner\0ghi").hexdigest()
    assert not any(text in repr(each) for each in keys for text in ("s3cret", "abc:def", "ghi", each.owner))


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
        ("a: S3CRET max-requests=0\n", "line 1"),
        ("a: S3CRET max-requests=2 max-requests=3\n", "line 1"),
        ("a: S3CRET tokens-per-minute=many\n", "line 1"),
        ("a: max-requests=S3CR=2 S3CRET\n", "line 1"),
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


def test_a_key_has_the_limits_of_its_line_or_those_of_all(tmp_path: Path) -> None:
    text = "a: one\nb: two max-requests=2\nc: three tokens-per-minute=500 max-requests=9\n"
    settings = replace(written(tmp_path, text), key_max_requests=4, api_key="s3cret")
    assert [(each.name, each.max_requests, each.tokens_per_minute) for each in api_keys(settings)] == [
        ("default", 4, None),
        ("a", 4, None),
        ("b", 2, None),
        ("c", 9, 500),
    ]


def test_a_ring_has_digests_alone_and_compares_all_of_them_in_constant_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = KeyRing(written(tmp_path, "a: first-key\nb: second-key\n"))
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def noting(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noting)
    # Whatever prefix a guess has in common with a key, what is compared are whole digests, of every key.
    for given in (b"", b"f", b"first-ke", b"first-key", b"second-key", b"x" * 1000, b"\xff"):
        compared.clear()
        found = ring.find(given)
        assert (found and found.name) == {b"first-key": "a", b"second-key": "b"}.get(given)
        assert [other for _, other in compared] == [each.digest for each in ring.keys]
        assert {one for one, _ in compared} == {digest_of(given)}
    kept = pickle.dumps(ring.keys)
    assert b"first-key" not in kept
    assert b"second-key" not in kept


def test_a_file_is_read_again_and_a_bad_one_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = written(tmp_path, "a: first\nb: second\n")
    ring = KeyRing(settings)
    written(tmp_path, "b: second\nc: third\n")
    with caplog.at_level(logging.INFO):
        assert ring.reload()
        assert [ring.find(key) and True for key in (b"first", b"second", b"third")] == [None, True, True]
        for text in ("", "c third S3CRET\n"):
            written(tmp_path, text)
            caplog.clear()
            assert not ring.reload()
            (record,) = caplog.records
            assert record.levelno == logging.ERROR
            assert "\n" not in record.getMessage()
            assert "S3CRET" not in record.getMessage()
        (tmp_path / "keys").unlink()
        assert not ring.reload()
    assert [each.name for each in ring.keys] == ["b", "c"]
