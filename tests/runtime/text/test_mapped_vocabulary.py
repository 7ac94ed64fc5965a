"""A mapped vocabulary gives what the library gives, for every kind of tokenizer that is mapped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.runtime.text.template_text import TemplateText
from tests.checkpoints.tokenizer import build_tokenizer
from tests.runtime.counting_model import tokenizer_json
from tests.runtime.text.many_texts import HARD_CASES, parts
from tests.runtime.text.mapped import BothForms, both_forms

EXAMPLES = int(os.environ.get("QWONNX_TEST_TEXT_EXAMPLES", "200"))
NUM_BYTES = int(os.environ.get("QWONNX_TEST_TEXT_BYTES", "100_000"))

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_WORDS = {"type": "Split", "pattern": {"Regex": r"\s+|\w+|[^\w\s]+"}, "behavior": "Isolated", "invert": False}


def document(model: Mapping[str, Any] | None = None, **parts: Any) -> str:
    """The test checkpoints' tokenizer with other parts."""
    made = json.loads(build_tokenizer())
    return json.dumps({**made, **parts, "model": {**made["model"], **(model or {})}})


def _with_strings_for_merges() -> str:
    merges = json.loads(build_tokenizer())["model"]["merges"]
    return document({"merges": ["#version: 0.2", *(" ".join(merge) for merge in merges)]})


def _sequence(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


KINDS = {
    "Qwen's": build_tokenizer(),
    "the counting model's": json.dumps(tokenizer_json()),
    "merges as strings": _with_strings_for_merges(),
    "no merges": document({"merges": []}),
    "empty prefixes": document({"continuing_subword_prefix": "", "end_of_word_suffix": ""}),
    "pieces that are tokens": document({"ignore_merges": True}),
    "GPT-2's words": document(pre_tokenizer={**_BYTE_LEVEL, "use_regex": True}),
    "whole texts": document(pre_tokenizer={**_BYTE_LEVEL, "use_regex": False}),
    "single digits": document(
        pre_tokenizer=_sequence(
            {"type": "Digits", "individual_digits": True}, _WORDS, {**_BYTE_LEVEL, "use_regex": False}
        )
    ),
    "white space left out": document(
        pre_tokenizer=_sequence(
            {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False},
            {**_BYTE_LEVEL, "use_regex": True},
        )
    ),
    "no normaliser": document(normalizer=None),
    "NFKC": document(normalizer={"type": "NFKC"}),
    "NFD, then NFKC": document(normalizer={"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "NFKC"}]}),
    "an added token that is normalised": document(
        added_tokens=[
            *json.loads(build_tokenizer())["added_tokens"],
            {
                "id": 1249,
                "content": "Ünï x",
                "single_word": False,
                "lstrip": True,
                "rstrip": False,
                "normalized": True,
                "special": False,
            },
        ]
    ),
}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> BothForms:
    return both_forms(KINDS["Qwen's"], tmp_path_factory.mktemp("qwen"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_tokens_of_the_library(kind: str, tmp_path: Path) -> None:
    both = both_forms(KINDS[kind], tmp_path)
    for text in (*HARD_CASES, *parts(20_000, seed=len(kind)), "xÜnï xx", "x U\u0308ni\u0308 x"):
        both.check(text)
    assert not both.loads


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_tokens_of_the_library(kind: str, tmp_path: Path) -> None:
    both = both_forms(KINDS[kind], tmp_path)
    mapped, library = both.mapped, both.library
    assert mapped.num_tokens == library.num_tokens
    assert mapped.largest_id == library.largest_id
    assert mapped.added_token_ids == library.added_token_ids
    assert mapped.vocabulary(mapped.num_tokens + 9) == library.vocabulary(library.num_tokens + 9)
    for token_id in range(library.num_tokens):
        assert mapped.is_special(token_id) == library.is_special(token_id)
        name = library.token_bytes(token_id).decode("latin-1")
        assert mapped.token_id(name) == library.token_id(name)
    assert mapped.token_id("") is None
    assert mapped.token_bytes(-1) == b""
    assert not both.loads


@settings(max_examples=EXAMPLES, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_gives_the_tokens_of_the_library(qwen: BothForms, text: str) -> None:
    qwen.check(text)


@settings(max_examples=EXAMPLES, deadline=None)
@given(written=st.lists(st.sampled_from(["a", "th", "ing", " ", "\n", "é", "e", "\u0301", "漢", "1", "<think>"])))
def test_the_added_tokens_of_a_chat_are_where_the_library_has_them(qwen: BothForms, written: list[str]) -> None:
    text = TemplateText("".join(written))
    expected = qwen.library.encode_chat(text)
    assert qwen.mapped.encode_chat(text) == expected
    assert qwen.in_python.encode_chat(text) == expected


def test_scripts_code_and_random_unicode_give_the_tokens_of_the_library(qwen: BothForms) -> None:
    for text in parts(NUM_BYTES):
        qwen.check(text)


def test_a_piece_that_is_very_long_gives_the_tokens_of_the_library(qwen: BothForms) -> None:
    for text in ("lorem" * 20_000, "x " + "the" * 40_000 + " y", "漢字" * 40_000):
        qwen.check(text)
