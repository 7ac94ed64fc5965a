"""Reasoning as encrypted_content: read back, foreign or damaged ones ignored, sizes bounded."""

from __future__ import annotations

import base64
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.handlers.responses import sealed_reasoning
from qwonnx.handlers.responses.sealed_reasoning import opened, sealed

pytestmark = pytest.mark.fast


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_was_sealed_is_read_back(text: str) -> None:
    content = sealed(text)
    assert content.startswith("qwonnx-reasoning-1:")
    assert opened(content) == text


@settings(deadline=None)
@given(st.text(max_size=40), st.integers(0, 40))
def test_anything_else_is_not_read_and_is_no_error(text: str, cut: int) -> None:
    whole = sealed("A thought that is long enough to be cut.")
    for content in (
        text,
        "qwonnx-reasoning-1:" + text,
        "qwonnx-reasoning-2:" + whole.partition(":")[2],
        whole[: cut + 19],
    ):
        assert opened(content) is None


def test_what_is_unpacked_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_reasoning, "MAX_BYTES", 1000)
    assert opened(sealed("a" * 999)) == "a" * 999
    assert opened(sealed("a" * 100_000)) is None
    not_text = "qwonnx-reasoning-1:" + base64.urlsafe_b64encode(zlib.compress(b"\xff\xfe")).decode()
    assert opened(not_text) is None
