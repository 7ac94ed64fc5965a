from __future__ import annotations

import json
from typing import Any

import pytest

from qwonnx.runtime.text.tool_arguments import ToolSchemas

pytestmark = pytest.mark.fast


def _value(text: str, schema: Any, **root: Any) -> Any:
    tool = {"function": {"name": "f", "parameters": {"type": "object", "properties": {"x": schema}, **root}}}
    return json.loads(ToolSchemas([tool]).arguments_json("f", {"x": text}))["x"]


@pytest.mark.parametrize(
    ("text", "schema", "expected"),
    [
        ("5", {"type": "string"}, "5"),
        (" true ", {"type": "string"}, " true "),
        ("5", {"type": "integer"}, 5),
        (" -5\n", {"type": "integer"}, -5),
        ("5.0", {"type": "integer"}, 5),
        ("5.5", {"type": "integer"}, "5.5"),
        ("five", {"type": "integer"}, "five"),
        ("true", {"type": "integer"}, "true"),
        ("5", {"type": "number"}, 5),
        ("2.5e3", {"type": "number"}, 2500.0),
        ("1e999", {"type": "number"}, "1e999"),
        ("NaN", {"type": "number"}, "NaN"),
        ("9" * 5000, {"type": "integer"}, "9" * 5000),
        ("true", {"type": "boolean"}, True),
        ("False", {"type": "boolean"}, False),
        ("1", {"type": "boolean"}, "1"),
        ("null", {"type": "null"}, None),
        ("None", {"type": ["string", "null"]}, None),
        ("nothing", {"type": ["string", "null"]}, "nothing"),
        ('{"a": [1, "é"]}', {"type": "object"}, {"a": [1, "é"]}),
        ("[1, 2]", {"type": "array"}, [1, 2]),
        ("[1, 2", {"type": "array"}, "[1, 2"),
        ("[1e999]", {"type": "array"}, "[1e999]"),
        ('["\\ud800"]', {"type": "array"}, '["\\ud800"]'),
        ("[" * 100_000, {"type": "array"}, "[" * 100_000),
        ('"quoted"', {"type": ["string", "integer"]}, '"quoted"'),
        ("3", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 3),
        ("null", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
        ("2", {"enum": [1, 2, 3]}, 2),
        ("b", {"enum": ["a", "b"]}, "b"),
        ("1", {"const": 1}, 1),
        ("5", {}, "5"),
        ("5", None, "5"),
        ("5", "nonsense", "5"),
    ],
)
def test_a_value_becomes_what_its_schema_asks_for_or_stays_text(text: str, schema: Any, expected: Any) -> None:
    found = _value(text, schema)
    assert found == expected
    assert type(found) is type(expected)


def test_references_to_definitions_are_followed_and_loops_are_not() -> None:
    definitions = {"Point": {"type": "object"}, "Loop": {"$ref": "#/$defs/Loop"}}
    assert _value('{"a": 1}', {"$ref": "#/$defs/Point"}, **{"$defs": definitions}) == {"a": 1}
    assert _value("1", {"$ref": "#/$defs/Loop"}, **{"$defs": definitions}) == "1"
    assert _value("1", {"$ref": "#/$defs/None"}) == "1"
    assert _value("1", {"$ref": "https://example.org/schema"}) == "1"


def test_a_parameter_or_function_without_a_schema_has_text() -> None:
    schemas = ToolSchemas([{"name": "flat", "parameters": {"properties": {"n": {"type": "integer"}}}}, {"type": "odd"}])
    assert schemas.arguments_json("flat", {"n": "1", "m": "1"}) == '{"n": 1, "m": "1"}'
    assert schemas.arguments_json("unknown", {"n": "ü"}) == '{"n": "ü"}'
