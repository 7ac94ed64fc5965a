"""Random bytes: they differ, in number and content; with a kernel that repeats itself the salt makes the difference."""

from __future__ import annotations

import os

import pytest

from qwonnx.runtime.sampling import entropy

pytestmark = pytest.mark.fast


def test_bytes_differ_and_have_their_size() -> None:
    assert {len(entropy.fresh_bytes(size)) for size in (16,)} == {16}
    assert len(entropy.fresh_bytes(64)) == 64
    ids = {entropy.fresh_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(each) == 32 and int(each, 16) >= 0 for each in ids)
    assert 0 <= entropy.fresh_seed() < 1 << 128


def test_bytes_differ_even_if_the_kernels_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", bytes)
    assert entropy.fresh_id() != entropy.fresh_id()


def test_two_copies_differ_by_what_stirs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", bytes)
    monkeypatch.setattr(entropy.time, "time_ns", lambda: 1)  # type: ignore[attr-defined]
    monkeypatch.setattr(entropy.time, "monotonic_ns", lambda: 1)  # type: ignore[attr-defined]

    def id_of_a_copy(material: bytes) -> str:
        monkeypatch.setattr(entropy, "_salt", bytes(32))
        monkeypatch.setattr(entropy, "_counter", iter(range(9)))
        entropy.stir(material)
        return entropy.fresh_id()

    assert id_of_a_copy(b"one") == id_of_a_copy(b"one")
    assert id_of_a_copy(b"one") != id_of_a_copy(b"two")
