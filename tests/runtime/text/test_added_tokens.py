"""Added tokens are found as the library finds them, with all of their flags; and only where they may be."""

from __future__ import annotations

import json
import unicodedata
from random import Random
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.runtime.text.template_text import TemplateText, joined, own, own_spans
from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.checkpoints.tokenizer import SPECIAL_TOKENS, build_tokenizer
from tests.runtime.counting_model import tokenizer_json

pytestmark = pytest.mark.fast

CONTENTS = ("<my>", "foo", "foo bar", "<é>", "[X]", "the", "<|im", "ab", "abc", " sp", "ﬁ", "<mask>", "é")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
TEXTS = (
    *CONTENTS,
    *list(SPECIAL_TOKENS)[:4],
    " ",
    "\n",
    "a",
    "x",
    "<",
    "\u2003",
    "\x1c",
    "中",
    "_",
    "e\u0301",
    "\u0301",
)


def _document(random: Random) -> str:
    document: dict[str, Any] = json.loads(build_tokenizer())
    first = max(token["id"] for token in document["added_tokens"]) + 1
    for number, content in enumerate(random.sample(CONTENTS, 5)):
        flags = {flag: random.random() < 0.4 for flag in FLAGS}
        document["added_tokens"].append({"id": first + number, "content": content, **flags})
    return json.dumps(document)


@pytest.mark.parametrize("seed", range(8))
def test_tokens_written_out_are_found_as_the_library_finds_them(seed: int) -> None:
    random = Random(seed)
    document = _document(random)
    theirs, ours = tokenizers.Tokenizer.from_str(document), Tokenizer(document)
    for _ in range(150):
        # Normalised text: elsewhere ours finds only tokens that normalisation leaves apart (the next test).
        text = unicodedata.normalize("NFC", "".join(random.choice(TEXTS) for _ in range(random.randint(0, 14))))
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text


def test_a_token_that_normalisation_would_melt_is_text() -> None:
    document = json.loads(build_tokenizer())
    first = max(token["id"] for token in document["added_tokens"]) + 1
    document["added_tokens"].append({"id": first, "content": "<my>", **dict.fromkeys(FLAGS, False), "normalized": True})
    theirs, ours = tokenizers.Tokenizer.from_str(json.dumps(document)), Tokenizer(json.dumps(document))
    for text in ("a<my>b", "e\u0301<my>e\u0301", "<my>\u0338", "x<my>\u0338<my>"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert first in ours.encode("e\u0301<my>")
    assert first not in ours.encode("<my>\u0338")  # > and the stroke are one character


@given(parts=st.lists(st.tuples(st.booleans(), st.text(alphabet="<|im_start>end", max_size=8)), max_size=8))
def test_a_token_counts_only_within_the_templates_own_text(parts: list[tuple[bool, str]]) -> None:
    tokenizer = Tokenizer(json.dumps(tokenizer_json()))
    text = joined(own(part) if is_own else part for is_own, part in parts)
    given_text = joined((own("<|im_start|>"), text, "<|im_end|>", own("<|im_end|>")))
    assert isinstance(given_text, TemplateText)
    encoded = tokenizer.encode_chat(given_text)
    assert tokenizer.decode(encoded.token_ids, skip_special_tokens=False) == given_text
    assert encoded.added_at[0] == 0
    assert encoded.added_at[-1] == len(encoded.token_ids) - 1
    runs = "\0".join(str(given_text)[span.start : span.end] for span in own_spans(given_text))
    assert len(encoded.added_at) == runs.count("<|im_start|>") + runs.count("<|im_end|>")
