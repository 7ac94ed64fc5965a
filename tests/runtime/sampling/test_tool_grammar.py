"""Tool calls under their grammar are read back as calls with arguments that are valid by the tool's schema."""

from __future__ import annotations

import json
import time
from typing import Any

import jsonschema
import pytest

from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.tool_grammar import tool_guide
from qwonnx.runtime.text.answer_events import ContentDelta, ReasoningDelta, ToolCall, with_whole_calls
from qwonnx.runtime.text.output_parser import OutputParser
from tests.runtime.sampling.guided import Said, compiler, may_follow, say, tokenizer

SEEDS = range(6)
_SHORT = {"type": "string", "maxLength": 6}


def _tool(name: str = "act", *, strict: bool = True, **parameters: Any) -> dict[str, Any]:
    if parameters:
        parameters = {"type": "object", **parameters}
    function = {"name": name, "parameters": parameters, "strict": strict}
    return {"type": "function", "function": function}


def _of(schema: Any, **root: Any) -> dict[str, Any]:
    """A strict tool with one required parameter."""
    return _tool(properties={"x": schema}, required=["x"], additionalProperties=False, **root)


def _events(said: Said, tools: list[dict[str, Any]]) -> list[ReasoningDelta | ContentDelta | ToolCall]:
    parser = OutputParser(False, tools)
    return with_whole_calls([*parser.push(said.text), *parser.finish()])


def _calls(guide: Guide, tools: list[dict[str, Any]], max_tokens: int = 600) -> list[ToolCall]:
    """The calls in a text generated under a guide, which has nothing else."""
    said = [text for text in (say(guide, seed, max_tokens) for seed in SEEDS) if text.is_complete]
    assert said
    events = [event for text in said for event in _events(text, tools)]
    calls = [event for event in events if isinstance(event, ToolCall)]
    assert len(calls) == len(events), [text.text for text in said]
    return calls


@pytest.mark.parametrize(
    "schema",
    [
        _SHORT,
        {"type": "string", "minLength": 2, "maxLength": 4},
        {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        {"type": "string", "pattern": "^(a|b)+$", "maxLength": 5},
        {"type": "string", "pattern": "x", "maxLength": 4},
        {"type": "string", "pattern": "^\\d/[a-z\\]]{1,2}", "maxLength": 6},
        {"type": "string", "format": "date"},
        {"type": "string", "format": "time"},
        {"type": "string", "format": "date-time"},
        {"type": "string", "format": "uuid"},
        {"type": "string", "format": "ipv4"},
        {"type": "string", "format": "email", "maxLength": 20},
        {"enum": ["c", "f", 'a "quoted" one', "two\nlines", "Größe"]},
        {"const": "fixed"},
        {"type": "integer"},
        {"type": "number", "minimum": -1, "maximum": 1},
        {"type": "boolean"},
        {"type": "null"},
        {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        {"type": "array", "items": _SHORT, "maxItems": 2},
        {"type": "object", "properties": {"a": _SHORT}, "required": ["a"], "additionalProperties": False},
        {"type": ["string", "null"], "maxLength": 5},
        {"type": ["integer", "null"]},
        {"type": ["string", "boolean"], "maxLength": 5},
        {"type": ["string", "integer"], "maxLength": 3, "minimum": 5},
        {"anyOf": [_SHORT, {"type": "null"}]},
        {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer", "minimum": 100}]},
        {"anyOf": [{"enum": ["auto"]}, {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2}]},
        {"oneOf": [{"type": "string", "maxLength": 3}, {"const": True}]},
        {"enum": ["a", 1, True, None]},
        {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 3}]},
        {"$ref": "#/$defs/N"},
        {"anyOf": [{"$ref": "#/$defs/S"}, {"$ref": "#/$defs/N"}]},
        {"type": "array", "items": {"$ref": "#/$defs/N"}, "maxItems": 2},
        {"description": "anything", "maxLength": 4},
    ],
    ids=lambda schema: json.dumps(schema)[:60],
)
def test_a_value_is_read_back_and_valid(schema: dict[str, Any]) -> None:
    definitions = {"N": {"type": "integer", "minimum": 0, "maximum": 99}, "S": {"type": "string", "maxLength": 3}}
    tools = [_of(schema, **{"$defs": definitions})]
    parameters = tools[0]["function"]["parameters"]
    for call in _calls(tool_guide(tools, required=True, parallel=False), tools):
        assert call.name == "act"
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(parameters, format_checker=checker).validate(json.loads(call.arguments_json))


def test_parameters_come_in_order_required_ones_always_and_tools_by_their_names() -> None:
    properties = {"a": {"type": "integer"}, "größe": {"type": "boolean"}, "b c": {"enum": ["x"]}}
    tools = [_tool("one", properties=properties, required=["größe", "d"]), _tool("two")]
    tools[0]["function"]["parameters"]["additionalProperties"] = {"type": "null"}
    seen = set()
    for call in _calls(tool_guide(tools, required=True), tools):
        arguments = json.loads(call.arguments_json)
        seen.add((call.name, *arguments))
        if call.name == "two":
            assert arguments == {}
        else:
            assert {"größe", "d"} <= arguments.keys() <= {"a", "größe", "b c", "d"}
            assert list(arguments) == [key for key in ("a", "größe", "b c", "d") if key in arguments]
    assert len(seen) > 1


def test_a_named_function_is_the_only_one_and_called_once() -> None:
    tools = [_tool("one"), _of({"type": "boolean"}), _tool("three")]
    guide = tool_guide(tools, required=True, function="act", parallel=False)
    assert {call.name for call in _calls(guide, tools)} == {"act"}
    assert len(_calls(guide, tools)) == len(SEEDS)


def test_a_tool_that_is_not_strict_has_well_formed_calls_with_values_of_any_kind() -> None:
    tools = [_tool(strict=False, properties={"x": {"type": "integer"}, "odd>": {}, "y": True}, required=["x"])]
    guide = tool_guide(tools, required=True)
    call = "<tool_call>\n<function=act>\n<parameter=x>\nnot a number\n</parameter>\n"
    assert _follow(guide, call + "</function>\n</tool_call>") == call + "</function>\n</tool_call>"
    assert _follow(guide, call + "<parameter=y>\n") == call + "<parameter=y>\n"
    assert _follow(guide, "<tool_call>\n<function=act>\n</function>") == "<tool_call>\n<function=act>\n"


def _follow(guide: Guide, text: str) -> str:
    """How much of a text a guide allows."""
    constraint = compiler().constraint(guide, ignore_eos=False)
    constraint.begin()
    tokens = tokenizer().encode(text)
    for place, token in enumerate(tokens):
        if token not in may_follow(constraint):
            return tokenizer().decode(tokens[:place])
        constraint.accept(token)
    return text


_CALL = "<tool_call>\n<function=act>\n<parameter=x>\n{}\n</parameter>\n</function>\n</tool_call>"


def test_with_auto_text_is_free_until_a_call_begins() -> None:
    guide = tool_guide([_of({"type": "integer"})])
    for text in (
        "",
        "Just <b>text</b>.\n",
        "I look it up.\n\n" + _CALL.format(5),
        _CALL.format(1) + "\n" + _CALL.format(2),
    ):
        assert _follow(guide, text + "<|im_end|>") == text + "<|im_end|>"
    assert not _follow(guide, "So: " + _CALL.format("five")).endswith("five")
    assert not _follow(guide, "So: <tool_call>\n<function=other>").endswith("other>")
    assert _follow(guide, _CALL.format(5) + " and more") == _CALL.format(5)
    once = tool_guide([_of({"type": "integer"})], parallel=False)
    assert _follow(once, _CALL.format(1) + "\n" + _CALL.format(2)) == _CALL.format(1)


def test_a_call_that_is_spelt_out_in_letters_is_not_let_through() -> None:
    constraint = compiler().constraint(tool_guide([_of({"type": "integer"})]), ignore_eos=False)
    constraint.begin()
    for byte in b"<tool_call":
        (token,) = [t for t in range(256) if tokenizer().token_bytes(t) == bytes([byte])]
        assert token in may_follow(constraint)
        constraint.accept(token)
    assert tokenizer().encode(">")[0] not in may_follow(constraint)


def test_an_answer_of_a_schema_and_calls_exclude_each_other() -> None:
    tools = [_of({"type": "integer"})]
    guide = tool_guide(tools, answer={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    assert _follow(guide, '{"a": 5}') == '{"a": 5}'
    assert _follow(guide, _CALL.format(5)) == _CALL.format(5)
    assert _follow(guide, "Hello") == ""
    for seed in SEEDS:
        said = say(guide, seed)
        if said.is_complete:
            (first, *_) = _events(said, tools)
            assert isinstance(first, ToolCall) or (isinstance(first, ContentDelta) and json.loads(first.text))


@pytest.mark.parametrize(
    "value", ["", "\n", "a\n", "\na", "</tool_call>", "<parameter=x>", "</function>", "</paramete", "é</think>\n\n"]
)
def test_odd_texts_are_values_like_others(value: str) -> None:
    tools = [_of({"type": "string"})]
    constraint = compiler().constraint(tool_guide(tools, required=True), ignore_eos=False)
    constraint.begin()
    before, after = _CALL.split("{}")
    letters = {tokenizer().token_bytes(token): token for token in range(256)}
    for token in (
        *tokenizer().encode(before),
        *(letters[bytes([byte])] for byte in value.encode()),  # tags as letters: texts do not have these tokens
        *tokenizer().encode(after),
    ):
        assert token in may_follow(constraint)
        constraint.accept(token)
    parser = OutputParser(False, tools)
    events = with_whole_calls([*parser.push(before + value + after), *parser.finish()])
    assert events == [ToolCall("act", json.dumps({"x": value}, ensure_ascii=False))]


@pytest.mark.parametrize(
    ("tool", "where", "reason"),
    [
        (_of({"type": "string", "not": {"const": "x"}}), "properties.x", "not"),
        (_of({"type": "string", "format": "colour"}), "properties.x.format", "date-time"),
        (_of({"type": "string", "pattern": "^a|b$"}), "properties.x.pattern", "anchors"),
        (_of({"type": "string", "pattern": 5}), "properties.x.pattern", "string"),
        (_of({"type": "string", "minLength": -1}), "properties.x", "minLength"),
        (_of({"oneOf": [_SHORT, {"enum": ["a"]}]}), "properties.x", "oneOf"),
        (_of({"$ref": "#/$defs/Missing"}), "properties.x", "Missing"),
        (_of({"$ref": "#/properties/x"}), "properties.x", "itself"),
        (_of(False), "properties.x", "no value"),
        (_of(5), "properties.x", "object"),
        (_tool(properties={"a>b": True}), "properties", "a>b"),
        (_tool(properties={" a": True}), "properties", "tag"),
        (_tool(properties=["a"]), "properties", "object"),
        (_tool(properties={}, required="a"), "required", "list"),
        (_tool(properties={}, minProperties=1), "", "minProperties"),
        (_tool(anyOf=[{"required": ["a"]}]), "", "anyOf"),
        (_tool() | {"function": {"name": "a", "strict": True, "parameters": {"type": "array"}}}, "type", "object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_strict_schema_that_calls_cannot_follow_is_refused_by_name(
    tool: dict[str, Any], where: str, reason: str
) -> None:
    with pytest.raises(InvalidRequestError, match=r"^[^\n]+$") as refusal:
        tool_guide([_tool("other"), tool])
    assert refusal.value.param == f"tools[1].function.parameters{'.' if where else ''}{where}"
    assert reason in str(refusal.value)
    tool["function"]["strict"] = False
    tool_guide([tool])


def test_what_llguidance_refuses_is_refused_when_it_is_compiled() -> None:
    tools = [_of({"type": "array", "uniqueItems": True})]
    with pytest.raises(InvalidRequestError, match="uniqueItems") as refusal:
        compiler().compile(tool_guide(tools)).result()
    assert refusal.value.param == "tools"


def _doubling(levels: int, keyword: str = "allOf") -> dict[str, Any]:
    definitions: dict[str, Any] = {
        f"d{n}": {"type": "string", keyword: [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)
    }
    definitions[f"d{levels}"] = {"type": "string", "maxLength": 3}
    root: dict[str, Any] = {"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": definitions}
    return _tool(**root)


@pytest.mark.parametrize("keyword", ["allOf", "anyOf"])
def test_a_schema_that_is_referred_to_often_is_written_once(keyword: str) -> None:
    began = time.perf_counter()
    guide = tool_guide([_doubling(28, keyword)], required=True)
    assert time.perf_counter() - began < 1
    assert len(guide.source) < 10_000
    compiler().compile(guide).result()


@pytest.mark.parametrize(
    ("schema", "limit"),
    [
        ({"type": "string", "const": "x" * 2_000_000}, "262144 bytes"),
        ({"type": "string", "enum": [f"value {n}" for n in range(60_000)]}, "20000 values"),
        ({"type": "string", "pattern": "[" * 300_000}, "262144 bytes"),
        ({"type": "string", "anyOf": [{"anyOf": [{"minLength": 1}] * 100}] * 60}, "5000 schemas"),
        ({"type": "object", "properties": {f"p{n}": True for n in range(1000)}}, "500 optional"),
        ({"type": "string", "maxLength": 10**30}, "1048576"),
    ],
    ids=["const", "enum", "pattern", "branches", "properties", "length"],
)
def test_what_is_too_large_is_refused_at_once_by_its_limit(schema: dict[str, Any], limit: str) -> None:
    began = time.perf_counter()
    with pytest.raises(InvalidRequestError, match=limit) as refusal:
        tool_guide([_tool(properties={"a": schema})], required=True)
    assert refusal.value.code == "invalid_guide"
    assert len(str(refusal.value)) < 500
    assert time.perf_counter() - began < 1


def test_definitions_that_every_parameter_repeats_count_each_time() -> None:
    definitions = {f"d{n}": {"type": "integer", "description": "x" * 1000} for n in range(50)}
    root: dict[str, Any] = {"properties": {f"p{n}": {"$ref": "#/$defs/d0"} for n in range(20)}, "$defs": definitions}
    with pytest.raises(InvalidRequestError, match="fewer or smaller"):
        tool_guide([_tool(**root)], required=True)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": 5},
        {"type": "string", "enum": 5},
        {"type": "string", "allOf": None},
        {"type": "string", "anyOf": {"a": 1}},
        {"type": "string", "$ref": 5},
        {"type": "string", "minLength": True},
        {"type": "string", "format": ["date"]},
        {"type": "string", "allOf": [{"$ref": "#/properties/a"}]},
    ],
    ids=str,
)
def test_a_malformed_schema_is_refused_and_not_a_fault(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be followed"):
        compiler().compile(tool_guide([_tool(properties={"a": schema})], required=True)).result()
