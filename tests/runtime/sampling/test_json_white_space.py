"""White space of JSON under a guide: what models write is allowed, and one that wants nothing else comes to an end."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from qwonnx.runtime.errors import GuideError
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.tool_grammar import tool_guide
from tests.runtime.sampling.guided import compiler, may_follow, tokenizer

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
        "inner": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}},
            "required": ["on"],
            "additionalProperties": False,
        },
    },
    "required": ["colour", "sizes", "inner"],
    "additionalProperties": False,
}
VALUE = {"colour": "red", "sizes": [1, 2], "inner": {"on": True}}
LONGEST = 33  # a line break and its indentation


def wanting_white_space(guide: Guide, seed: int) -> str:
    """The text of a model that takes white space wherever it may, as much as it may."""
    constraint = compiler().constraint(guide, ignore_eos=False)
    constraint.begin()
    random = np.random.default_rng(seed)
    said: list[int] = []
    while not constraint.is_complete:
        assert len(said) < 1000, tokenizer().decode(said)
        allowed = sorted(may_follow(constraint))
        blank = [token for token in allowed if (text := tokenizer().token_bytes(token)) and not text.strip()]
        wanted = max(blank, key=lambda token: len(tokenizer().token_bytes(token)), default=None)
        # The longest white space, or now and then any that there is, as `\n` before an indentation.
        token = int(random.choice(blank or allowed)) if wanted is None or random.random() < 0.5 else wanted
        constraint.accept(token)
        said.append(token)
    return tokenizer().decode(said).removesuffix("<|im_end|>").removesuffix("<|endoftext|>")


@pytest.mark.parametrize("seed", range(4))
def test_a_model_that_wants_only_white_space_ends(seed: int) -> None:
    text = wanting_white_space(Guide.json_schema(SCHEMA), seed)
    assert json.loads(text).keys() == VALUE.keys()
    runs = re.findall(r"\s+", text)
    assert runs
    assert all(run == " " or re.fullmatch(r"\n[ \t]{0,32}", run) for run in runs), runs


def test_the_values_of_a_strict_tool_have_no_more_of_it() -> None:
    parameters = {"type": "object", "properties": {"v": SCHEMA}, "required": ["v"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": parameters}}
    guide = tool_guide([tool], required=True, parallel=False)
    text = wanting_white_space(guide, 0)
    value = text.partition("<parameter=v>\n")[2].partition("\n</parameter>")[0]
    assert json.loads(value).keys() == VALUE.keys()
    assert max(map(len, re.findall(r"\s+", value))) <= LONGEST


@pytest.mark.parametrize("form", [{"separators": (",", ":")}, {}, {"indent": 2}, {"indent": 4}, {"indent": "\t"}])
def test_the_usual_ways_to_write_json_are_allowed(form: dict[str, Any]) -> None:
    follow(json.dumps(VALUE, **form))


@pytest.mark.parametrize("text", ['{\n\n"colour"', '{  "colour"', '{ \n"colour"', "{\r\n", "{\t", "{\n" + " " * 33])
def test_a_second_line_break_or_space_is_not(text: str) -> None:
    with pytest.raises(GuideError):
        follow(text)


def follow(text: str) -> None:
    """Say this text.

    Raises:
        GuideError: the guide does not allow it.
    """
    constraint = compiler().constraint(Guide.json_schema(SCHEMA), ignore_eos=False)
    constraint.begin()
    for byte in text.encode():
        (token,) = tokenizer().encode(chr(byte))
        constraint.allowed()
        constraint.accept(token)
