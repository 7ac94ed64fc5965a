from __future__ import annotations

import json
import time
from typing import Any

import pytest

from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.text.schema_types import MAX_VALUES, check_size, key_matches
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
        ('{"a": 1}', {}, {"a": 1}),
        ("[1]", True, [1]),
        ("[1]", {"items": {"type": "integer"}}, [1]),
        ('{"a": 1}', {"properties": {"a": {}}}, {"a": 1}),
        ("7", {"minimum": 5}, 7),
        ("[1]", {"pattern": "^.1.$"}, "[1]"),
        ("null", {"type": "integer", "nullable": True}, None),
        ("null", {"type": "integer", "nullable": False}, "null"),
        ("2", {"enum": [1, "2"]}, "2"),
        ("1", {"enum": [1, "2"]}, 1),
        ("5", {"allOf": [{"type": ["integer", "string"]}, {"type": ["number", "null"]}]}, 5),
        ("5", {"allOf": [{"type": "string"}, {"type": "integer"}]}, "5"),
        ("5", {"anyOf": [{"type": "integer"}, {}]}, 5),
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


@pytest.mark.parametrize(
    ("reference", "document"),
    [
        ("#/$defs/a~1b~0c", {"$defs": {"a/b~c": {"type": "integer"}}}),
        ("#/$defs/P%5Bint%5D", {"$defs": {"P[int]": {"type": "integer"}}}),
        ("#/$defs/P/anyOf/1", {"$defs": {"P": {"anyOf": [{}, {"type": "integer"}]}}}),
        ("#name", {"$defs": {"P": {"$anchor": "name", "type": "integer"}}}),
        ("#name", {"definitions": {"P": {"$id": "#name", "type": "integer"}}}),
        ("https://example.org/s#/$defs/P", {"$id": "https://example.org/s", "$defs": {"P": {"type": "integer"}}}),
    ],
)
def test_references_are_read_as_json_pointers_and_anchors(reference: str, document: dict[str, Any]) -> None:
    assert _value("5", {"$ref": reference}, **document) == 5
    for wrong in (f"{reference}/x", f"{reference}x", "#/$defs/P/anyOf/2", "#/$defs/P/anyOf/-1", "#/$defs/P/anyOf/01x"):
        assert _value("5", {"$ref": wrong}, **document) == "5"


def _of_root(text: str, parameters: dict[str, Any], key: str = "x") -> Any:
    tool = {"function": {"name": "f", "parameters": parameters}}
    return json.loads(ToolSchemas([tool]).arguments_json("f", {key: text}))[key]


NUMBER = {"properties": {"x": {"type": "integer"}}}


@pytest.mark.parametrize(
    "parameters",
    [
        {"$ref": "#/$defs/M", "$defs": {"M": NUMBER}},
        {"$ref": "#/$defs/M", "$defs": {"M": {**NUMBER, "properties": {"x": {"type": "integer"}, "m": {"$ref": "#"}}}}},
        {"allOf": [{"required": ["x"]}, NUMBER]},
        {"anyOf": [NUMBER, {"properties": {"y": {"type": "string"}}}]},
        {"oneOf": [{"properties": {"x": {"const": 5}}}, {"properties": {"x": {"const": 6}}}]},
        {"if": {"required": ["y"]}, "then": NUMBER, "else": {}},
        {"additionalProperties": {"type": "integer"}},
        {"patternProperties": {"^x$": {"type": "integer"}}},
        {"patternProperties": {"^(?:x|y)$": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
        {"properties": {"x": {}}, "allOf": [{"additionalProperties": {"type": "integer"}}, NUMBER]},
        {"patternProperties": {"(?=x).*": {"type": "integer"}}},  # not tried, so it may match
    ],
)
def test_a_parameters_schema_is_found_in_every_part_of_the_root(parameters: dict[str, Any]) -> None:
    assert _of_root("5", parameters) == 5


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"properties": None},
        {"properties": {"x": {"type": "string"}}, "patternProperties": {"^y": {"type": "integer"}}},
        {"patternProperties": {"^y": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
        {"anyOf": "x", "allOf": 5, "$ref": 7, "additionalProperties": [], "patternProperties": []},
    ],
)
def test_a_parameter_that_no_part_makes_a_number_stays_text(parameters: dict[str, Any]) -> None:
    assert _of_root("5", parameters) == "5"


def test_names_of_parameters_come_from_every_part_of_the_root() -> None:
    root = {"$ref": "#/$defs/a", "anyOf": [NUMBER, {"$ref": "#"}], "$defs": {"a": {"properties": {"y": {}}}}}
    assert ToolSchemas([{"name": "f", "parameters": root}]).parameters("f") == {"x", "y"}


def _doubling(depth: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(depth)}
    return {"$ref": "#/$defs/a0", "$defs": definitions | {f"a{depth}": NUMBER}}


HOSTILE: dict[str, dict[str, Any]] = {
    "itself, often": {"properties": {"x": {"anyOf": [{"$ref": "#/properties/x"}] * 2000}}},
    "each other": {
        "properties": {"x": {"$ref": "#/$defs/a0"}},
        "$defs": {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{j}"} for j in range(60)]} for i in range(60)},
    },
    "doubling": _doubling(45),
    "a root in itself": {"anyOf": [{"$ref": "#"}] * 2000, **NUMBER},
    "many patterns": {"patternProperties": {f"x*x*y{i}": {} for i in range(5000)}},
    "an exponential pattern": {"patternProperties": {"(x+)+y": {}, "(x|x)*y": {}, "x?" * 60 + "x" * 60: {}}},
    "anchors": {"properties": {"x": {"anyOf": [{"$ref": f"#n{i}"} for i in range(5000)]}}},
    "deep": {"properties": {"x": json.loads('{"allOf":[' * 400 + "{}" + "]}" * 400)}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_schema_takes_long(name: str) -> None:
    key = "x" * 120 if "pattern" in name else "x"
    document = json.loads(json.dumps(HOSTILE[name]))  # as a body has it: no two parts are the same object
    started = time.process_time()
    schemas = ToolSchemas([{"name": "f", "parameters": document}])
    schemas.parameters("f")
    schemas.arguments_json("f", {key: "5", "other": "1"})
    assert time.process_time() - started < 1


def test_a_large_schema_is_refused_by_its_size() -> None:
    check_size({"enum": list(range(MAX_VALUES - 2))}, "tools[0].function.parameters")
    large: dict[str, Any]
    for large in ({"enum": list(range(MAX_VALUES))}, {"allOf": [{"x": {}}] * MAX_VALUES}):
        with pytest.raises(InvalidRequestError, match="more than 50,000 values") as refusal:
            check_size(large, "tools[0].function.parameters")
        assert refusal.value.param == "tools[0].function.parameters"


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("^x-", "x-y", True),
        ("^x-", "ax-y", False),
        ("^[a-z_]+$", "snake_case", True),
        ("^[a-z_]+$", "snake\n", False),
        ("^(get|set)_\\w+$", "set_it", True),
        ("", "anything", True),
        ("^\\d{3}$", "123", True),
        ("(a+)+$", "aaa", None),
        ("(?<!a)b", "b", None),
        ("\\1", "1", None),
        ("[[:alpha:]]", "a", None),
        ("a" * 300, "a", None),
    ],
)
def test_keys_are_matched_against_patterns_that_take_little_time(pattern: str, key: str, expected: bool | None) -> None:
    assert key_matches(pattern, key) is expected


def test_a_parameter_or_function_without_a_schema_has_text() -> None:
    schemas = ToolSchemas([{"name": "flat", "parameters": {"properties": {"n": {"type": "integer"}}}}, {"type": "odd"}])
    assert schemas.arguments_json("flat", {"n": "1", "m": "1"}) == '{"n": 1, "m": "1"}'
    assert schemas.arguments_json("unknown", {"n": "ü"}) == '{"n": "ü"}'


@pytest.mark.parametrize(
    ("text", "schema", "expected"),
    [
        ("12", {"type": "integer"}, "12"),
        (" -2.5", {"type": "number"}, "-2.5"),
        ("5.0", {"type": "integer"}, ""),
        ("tru", {"type": "boolean"}, ""),
        ("true", {"type": "boolean"}, "true"),
        ("None", {"type": "null"}, ""),
        ("12", {"type": "array"}, ""),
        ("five", {"type": "integer"}, ""),
        ("\n[1,2", {"type": "array"}, "[1, 2"),
        ('{"a": [1, {"b":"c', {"type": "object"}, '{"a": [1, {"b": "c'),
        ('{"a": 1, "b', {"type": "object"}, '{"a": 1'),
        ("{'a': 1", {"type": "object"}, ""),
        ("[1", {"type": "object"}, ""),
        ("[1", {"type": ["array", "null"]}, "[1"),
        ("[" * 5000, {"type": "array"}, ""),
    ],
)
def test_a_value_that_is_cut_off_has_the_beginning_of_its_json(text: str, schema: Any, expected: str) -> None:
    tool = {"function": {"name": "f", "parameters": {"type": "object", "properties": {"x": schema}}}}
    assert ToolSchemas([tool]).begun_json("f", "x", text) == expected


def test_a_value_may_stream_if_it_can_only_be_a_string() -> None:
    properties = {
        "s": {"type": "string"},
        "e": {"enum": ["a", "b"]},
        "u": {"type": ["string", "null"]},
        "n": {"type": "integer"},
        "free": {},
    }
    schemas = ToolSchemas([{"name": "f", "parameters": {"properties": properties}}])
    assert {key for key in (*properties, "unknown") if schemas.is_text("f", key)} == {"s", "e", "unknown"}
    assert schemas.is_text("other", "x")
