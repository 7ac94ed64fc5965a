"""Random bytes: they differ, in number and content; with a kernel that repeats itself the salt makes the difference."""

from __future__ import annotations

import os
import re
from pathlib import Path

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


def test_nothing_else_makes_ids_or_seeds() -> None:
    """A copy of a process stirs one source; another source would give two copies the same ids."""
    root = Path(__file__).resolve().parents[3]
    own = re.compile(r"^\s*(?:import|from) (?:uuid|random|secrets)\b|default_rng\(\)", re.MULTILINE)
    found = {
        path.relative_to(root).as_posix()
        for folder in ("handlers", "runtime")
        for path in (root / folder).rglob("*.py")
        if own.search(path.read_text(encoding="utf-8"))
    }
    assert found == {
        "handlers/chat/restore.py",  # seeds `random` anew
        "runtime/sampling/grammar_check.py",  # a child process, with a fixed seed
        "runtime/model/stages/wire.py",  # a challenge for one connection, from the system
        "runtime/model/compiling.py",  # a name of a file beside others, in a folder that nobody else writes
    }
