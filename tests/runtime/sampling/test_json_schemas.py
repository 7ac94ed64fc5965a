"""A corpus of JSON schemas: each is followed by any model, or refused with a reason that names it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.sampling.form_size import MAX_GUIDE_BYTES, MAX_NESTING
from qwonnx.runtime.sampling.guide import Guide
from tests.runtime.sampling.guided import Said, compiler, say

SEEDS = range(6)


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "boolean"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    return schema


# Schemas that are shorter in Python than in the file.
_COMPUTED: list[dict[str, Any]] = [
    {"name": "large enum", "features": ["enum"], "schema": {"enum": [f"value {n * 7919 % 9973}" for n in range(3000)]}},
    {
        "name": "many properties",
        "features": ["properties"],
        "schema": {
            "type": "object",
            "properties": {f"p{n}": {"type": "boolean"} for n in range(60)},
            "required": [f"p{n}" for n in range(0, 60, 4)],
            "additionalProperties": False,
        },
    },
    {"name": "deep nesting", "features": ["nesting"], "schema": _nested(20)},
    {"name": "too deep nesting", "features": ["nesting"], "schema": _nested(MAX_NESTING), "refused": "levels"},
    {
        "name": "too large",
        "features": ["enum"],
        "schema": {"enum": ["x" * 1000 + str(n) for n in range(MAX_GUIDE_BYTES // 1000)]},
        "refused": "bytes",
    },
    {"name": "half a surrogate pair", "features": ["malformed"], "schema": {"const": "\ud800"}, "refused": "surrogate"},
    {"name": "not a number", "features": ["malformed"], "schema": {"const": float("nan")}, "refused": "not JSON"},
]
_FILE = Path(__file__).parent / "data" / "json_schemas.jsonl"
CORPUS = [*map(json.loads, _FILE.read_text(encoding="utf-8").splitlines()), *_COMPUTED]
ENDLESS = [entry for entry in CORPUS if "endless" in entry]
REFUSED = [entry for entry in CORPUS if "refused" in entry]
FOLLOWED = [entry for entry in CORPUS if entry not in REFUSED and entry not in ENDLESS]


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    assert len(CORPUS) >= 180
    assert len({entry["name"] for entry in CORPUS}) == len(CORPUS)
    assert all(entry["features"] for entry in CORPUS)


@pytest.mark.parametrize("entry", FOLLOWED, ids=lambda entry: entry["name"])
def test_what_is_said_under_a_schema_is_valid_by_it(entry: dict[str, Any]) -> None:
    guide = Guide.json_schema(entry["schema"])
    said = [say(guide, seed) for seed in SEEDS]
    finished = [text for text in said if text.is_complete]
    assert finished, said
    for text in finished:
        _validate(text, entry["schema"])


@pytest.mark.parametrize("entry", ENDLESS, ids=lambda entry: entry["name"])
def test_a_schema_that_no_text_ends_by_is_followed_to_the_last_token(entry: dict[str, Any]) -> None:
    assert not any(say(Guide.json_schema(entry["schema"]), seed, 40).is_complete for seed in SEEDS)


@pytest.mark.parametrize("entry", REFUSED, ids=lambda entry: entry["name"])
def test_a_schema_that_cannot_be_followed_is_refused_with_the_reason(entry: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=r"^[^\n]+$") as refusal:
        compiler().compile(Guide.json_schema(entry["schema"], "response_format")).result()
    assert entry["refused"] in str(refusal.value)
    assert refusal.value.param == "response_format"


def _validate(said: Said, schema: Any) -> None:
    # llguidance lets any minute have a leap second.
    value = json.loads(re.sub(r"(:[0-5][0-9]):60", r"\1:59", said.text))
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    validator(schema, format_checker=validator.FORMAT_CHECKER).validate(value)
