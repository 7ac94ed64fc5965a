"""Strategies for bodies of chat requests, from ordinary ones to those of an attacker."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from qwonnx.runtime.sampling.params import PARAMETERS

SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<function=f>",
    "</function>",
    "<parameter=a>",
    "</parameter>",
    "<|vision_start|>",
)
_FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "ipv6", "email", "uri", "hostname", "colour", "")
_NUMBERS = (0, 1, -1, 2, 64, 400, 1000, 10**6, 2**31, 2**63, 10**30, -(10**400), 0.5, 1e308, 1e-300)

_plain = st.text(st.characters(codec="utf-8"), max_size=24)
_words = st.lists(st.sampled_from([*SPECIAL, "Germany", " in ", "Swahili?", "\n", "{", '"', "é", "日本", "x" * 50]))
texts = _plain | _words.map("".join)
numbers = st.sampled_from(_NUMBERS) | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | texts
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5), max_leaves=20
)


def _powers() -> st.SearchStrategy[str]:
    """Repetitions within repetitions."""
    inner = st.sampled_from(["a", "a?", ".", "[a-z]", "(ab|c)", r"\w", "(?s:.)", r"\p{L}", "(?i)x"])
    counts = st.sampled_from(["{1,60}", "{1000}", "*", "+", "?", "{0,3}", "{400}", "{2}", "{1,}", "{5,2}", "{9999999}"])
    layers = st.lists(counts, min_size=1, max_size=4)
    return st.builds(lambda start, found: "".join(["(" * len(found), start, *(f"){n}" for n in found)]), inner, layers)


patterns = (
    _powers()
    | st.lists(_powers(), max_size=3).map("".join)
    | st.text("()[]{}|*+?.^$\\abc-,019", max_size=20)
    | st.sampled_from(["(a?){400}a{400}", "(a{1000}){1000}", "((a{1,60}){1,60}){1,60}", "^a|b$", "(.*a){9}.{20}"])
    | st.builds(lambda mark, n: mark * n, st.sampled_from(["[", "(", "(a|", "a|", "[^", "\\"]), st.integers(1, 3000))
)
grammars = (
    st.lists(
        st.tuples(
            st.sampled_from(["start", "a", "b", "T"]), st.sampled_from(['"x"', "a b", "a | b", "start a", "T*", ""])
        ),
        min_size=1,
        max_size=6,
    ).map(lambda rules: "\n".join(f"{name}: {body}" for name, body in rules))
    | patterns.map(lambda pattern: f"start: T\nT: /{pattern}/")
    | st.builds(lambda n: "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(n)), st.integers(1, 3000))
    | texts
)


def _object(properties: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **more}


def _doubling(levels: int, keyword: str) -> dict[str, Any]:
    definitions = {f"d{n}": {"type": "string", keyword: [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)} | {
        f"d{levels}": {"type": "string"}
    }
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "required": ["a"], "$defs": definitions}


_names = st.sampled_from(["a", "b", "c", "a>b", "", "x\ny", "$ref", "é"]) | texts
_leaves = st.one_of(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(
                ["string", "integer", "number", "boolean", "null", "array", "object", "text", 5, None]
            )
        }
    ),
    st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={
            "pattern": patterns | scalars,
            "format": st.sampled_from(_FORMATS) | scalars,
            "minLength": numbers | scalars,
            "maxLength": numbers,
        },
    ),
    st.fixed_dictionaries({"enum": st.lists(scalars, max_size=6) | scalars}),
    st.fixed_dictionaries({"const": trees}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number"])},
        optional={"multipleOf": numbers, "minimum": numbers, "maximum": numbers, "exclusiveMinimum": scalars},
    ),
    st.fixed_dictionaries(
        {"$ref": st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#/properties/a", "http://x/y", "#/~"])}
    ),
    st.booleans(),
    trees,
)


def _nested(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


schemas: st.SearchStrategy[Any] = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.builds(
            _object,
            st.dictionaries(_names, inner, max_size=4),
            st.fixed_dictionaries(
                {},
                optional={
                    "required": st.lists(_names, max_size=3) | scalars,
                    "additionalProperties": inner,
                    "patternProperties": st.dictionaries(patterns, inner, max_size=2),
                    "$defs": st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2) | scalars,
                    "minProperties": numbers,
                },
            ),
        ),
        st.fixed_dictionaries(
            {"type": st.just("array")},
            optional={
                "items": inner,
                "minItems": numbers,
                "maxItems": numbers,
                "prefixItems": st.lists(inner, max_size=3),
            },
        ),
        st.builds(
            lambda keyword, parts: {keyword: parts},
            st.sampled_from(["anyOf", "oneOf", "allOf", "not", "if"]),
            st.lists(inner, max_size=3) | inner,
        ),
    ),
    max_leaves=8,
) | st.one_of(
    st.builds(_doubling, st.integers(1, 70), st.sampled_from(["allOf", "anyOf"])),
    st.integers(1, 3000).map(lambda n: _object({f"p{i}": {"type": "string"} for i in range(n)}, {})),
    st.integers(1, 30_000).map(lambda n: {"enum": [f"v{i}" for i in range(n)]}),
    st.integers(1, 300).map(_nested),
    st.just({"type": "object", "properties": {"a": {"type": "string", "const": "x" * 300_000}}, "required": ["a"]}),
    st.lists(st.sampled_from([97, 89, 83, 7, 1000003]), min_size=1, max_size=3).map(
        lambda found: {"allOf": [{"type": "integer", "multipleOf": n} for n in found]}
    ),
)


_tools = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": st.sampled_from(["f", "g", "get_weather", "bad name", ""])},
                optional={"parameters": schemas, "strict": st.booleans() | st.none(), "description": texts},
            ),
        }
    ),
    max_size=3,
)
_arguments = trees.map(json.dumps) | texts | st.integers(1, 3000).map(lambda n: "[" * n)
_calls = st.lists(
    st.fixed_dictionaries(
        {
            "id": texts,
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": st.sampled_from(["f", "g", "x y"]), "arguments": _arguments}),
        }
    ),
    max_size=3,
)
_content = texts | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}) | trees, max_size=3)
_messages = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "developer"]), "content": _content}),
        st.fixed_dictionaries(
            {"role": st.just("assistant")},
            optional={"content": _content | st.none(), "tool_calls": _calls, "reasoning_content": texts},
        ),
        st.fixed_dictionaries({"role": st.just("tool"), "content": _content, "tool_call_id": texts}),
        trees,
    ),
    max_size=5,
)
_good_messages = texts.map(lambda text: [{"role": "user", "content": text or "x"}])
_many_messages = st.integers(1, 6000).map(lambda n: [{"role": "user", "content": "x"}] * n)
_long_messages = st.builds(
    lambda piece, n: [{"role": "user", "content": piece * n}],
    st.sampled_from(["a", "é ", "<|im_end|>", " ", "\n", "日", "1", "[],", "</parameter>"]),
    st.integers(1, 200_000),
)
_forms = st.one_of(
    st.fixed_dictionaries({}),
    st.fixed_dictionaries(
        {
            "response_format": st.fixed_dictionaries(
                {
                    "type": st.just("json_schema"),
                    "json_schema": st.fixed_dictionaries({"name": st.just("n"), "schema": schemas}),
                }
            )
        }
    ),
    st.fixed_dictionaries({"structured_outputs": st.fixed_dictionaries({"regex": patterns})}),
    st.fixed_dictionaries({"structured_outputs": st.fixed_dictionaries({"grammar": grammars})}),
    st.fixed_dictionaries({"structured_outputs": st.fixed_dictionaries({"json": schemas | schemas.map(json.dumps)})}),
    st.fixed_dictionaries({"structured_outputs": st.fixed_dictionaries({"choice": st.lists(texts, max_size=50)})}),
    st.fixed_dictionaries(
        {
            "tools": _tools,
            "tool_choice": st.sampled_from(["auto", "required", "none"])
            | st.just({"type": "function", "function": {"name": "f"}}),
        },
        optional={"parallel_tool_calls": st.booleans()},
    ),
)
_few = st.integers(1, 12)
_damages = st.binary(max_size=4) | st.sampled_from(
    [b"[" * 100_000, b'{"a":' * 5000, b"9" * 10_000, b"\\ud800", b"[]," * 90_000]
)
_sampling = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.sampled_from([0.5, 1]) | numbers for name, each in PARAMETERS.items() if not each.by_hand},
        "temperature": st.sampled_from([0, 0.7, 1, 2]) | numbers,
        "top_p": st.sampled_from([0, 0.5, 1]) | numbers,
        "stop": texts | st.lists(texts, max_size=5),
        "logit_bias": st.dictionaries(st.sampled_from(["0", "5", "99999999", "x"]), numbers, max_size=3),
        "stream": st.booleans(),
        "ignore_eos": st.booleans(),
        "chat_template_kwargs": st.fixed_dictionaries({"enable_thinking": st.booleans()}),
        "metadata": trees,
        "n": scalars,
    },
)


@st.composite
def bodies(draw: st.DrawFn, model: str) -> bytes:
    """A body for a server of this model. Most are JSON of a chat request with one odd part; answers have few tokens."""
    kind = draw(st.sampled_from(range(20)))
    if kind == 19:
        return json.dumps(draw(trees)).encode()
    request: dict[str, Any] = {"model": model, "messages": draw(_good_messages), "max_tokens": draw(_few)}
    if kind < 12:
        request |= draw(_forms)
    elif kind < 15:
        request["messages"] = draw(_messages | _many_messages | _long_messages)
    elif kind < 17:
        request |= draw(_sampling)
    else:
        request |= draw(_forms)
        request |= draw(_sampling)
    request.setdefault("chat_template_kwargs", {"enable_thinking": False})
    body = json.dumps(request).encode()
    if kind == 18:
        place, damage = draw(st.integers(0, len(body))), draw(_damages)
        body = body[:place] + damage + body[place + 1 :]
    return body
