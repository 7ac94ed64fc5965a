"""Tool calls as a grammar: output_parser.py reads its texts back as calls with valid arguments.

    answer | <tool_call> <function=NAME> <parameter=KEY> value </parameter> ... </function> </tool_call> ...

A function's parameters have the order of its schema; required ones are always present. A string's value is the text
itself, up to the closing tag, which it cannot contain; any other value is JSON text that the schema allows. If a
parameter accepts strings and other types, tool_arguments.py decides by the text, so strings that look like another type
are excluded.

Values are constrained only for tools with `strict`; for other tools they are any text.

Schemas come from clients. Their size is checked first, a schema that is referred to is walked once, and the grammar's
size is checked as it grows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.sampling.form_size import MAX_GUIDE_BYTES, MAX_NESTING, check_value
from qwonnx.runtime.sampling.guide import Guide, GuideKind, quoted, schema_text
from qwonnx.runtime.sampling.pattern_outline import outline_of
from qwonnx.runtime.text.tool_arguments import json_types, resolved

_ANY_TEXT = r"/(?s:.*)/"
_END = '"\\n</parameter>\\n"'

# Terminals that rules share. The parser would read a <tool_call> or a function in plain text as a call, so BEFORE_CALL
# excludes them.
_TERMINALS = rf"""
BEFORE_CALL: {_ANY_TEXT} & ~/(?s:.*)<(tool_call>|function=)(?s:.*)/
VALUE: {_ANY_TEXT} & ~/(?s:.*)<\/parameter>(?s:.*)/
NO_CONSTANT: ~/[\s\x1c-\x1f]*(null|None|true|True|false|False)[\s\x1c-\x1f]*/
NO_JSON: ~/[\s\x1c-\x1f]*[\-0-9\[{{](?s:.*)/
"""

_DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"  # days that every month has
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+\-]([01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
    "email": r"[a-zA-Z0-9_]+([.+\-][a-zA-Z0-9_]+)*@[a-zA-Z0-9]+(\-[a-zA-Z0-9]+)*(\.[a-zA-Z0-9]+(\-[a-zA-Z0-9]+)*)+",
}

# Of a parameters object: keywords that the grammar follows, and those without a constraint.
_ROOT_KEYWORDS = {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$id"}
_ANNOTATIONS |= {"$comment"}
# One of these says which types a value may have; without them, keywords such as `properties` suggest one.
_TYPING = frozenset({"type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf"})
_NOT_FOLLOWED = ("not", "if", "then", "else")  # of a string's schema
_MAX_SCHEMAS = 5_000  # that are walked for the strings of all strict tools
_MAX_LENGTH = 1 << 20  # of a string, in minLength and maxLength


def tool_guide(
    tools: Sequence[Mapping[str, Any]],
    *,
    required: bool = False,
    function: str | None = None,
    parallel: bool = True,
    answer: Mapping[str, Any] | bool | None = None,
    after_thinking: bool = False,
) -> Guide:
    """A guide for answers with tool calls.

    Args:
        tools: OpenAI's form, `{"type": "function", "function": {"name", "parameters", "strict"}}`.
        required: the answer must call a tool. Otherwise it may be text, or text followed by calls.
        function: with required, the one that it must call.
        parallel: it may have several calls.
        answer: the schema of an answer without calls; None is any text.
        after_thinking: see Guide.

    Raises:
        InvalidRequestError: a strict tool's schema cannot be followed; `tools[0].function.parameters...` as param. Or
            the tools are too large together.
    """
    strict = [tool["function"].get("parameters") for tool in tools if tool["function"].get("strict")]
    check_value(strict, "tools")
    writer = _Writer()
    functions = [
        writer.function(tool["function"], f"tools[{index}].function")
        for index, tool in enumerate(tools)
        if function in (None, tool["function"]["name"])
    ]
    writer.add(f'call: <tool_call> "\\n<function=" ({" | ".join(functions)}) "</function>\\n" </tool_call>')
    writer.add('calls: call ("\\n" call)*' if parallel else "calls: call")
    if required:
        start = "calls"
    elif answer is None:
        start = "BEFORE_CALL calls?"
    else:
        start = f"calls | %json {schema_text(answer, 'response_format')}"
    source = "\n".join([f"start: {start}", *writer.rules]) + _TERMINALS
    return Guide(GuideKind.LARK, source, "tools", after_thinking)


class _Writer:
    """Collects the rules of a grammar."""

    def __init__(self) -> None:
        self.rules: list[str] = []
        self._num_bytes = 0
        self._num_schemas = 0
        self._free: str | None = None
        self._value_text = "VALUE"  # of the present function
        # The terminal of a reference in a function's schema; None if its target allows no string.
        self._referred: dict[str, str | None] = {}
        self._open: set[str] = set()  # references that are being followed

    def add(self, rule: str) -> None:
        """Add a rule.

        Raises:
            InvalidRequestError: the grammar is too large.
        """
        self.grow(len(rule))
        self.rules.append(rule)

    def grow(self, num_bytes: int) -> None:
        """Count bytes of the grammar before they are made."""
        self._num_bytes += num_bytes
        if self._num_bytes > MAX_GUIDE_BYTES:
            reason = f"the tools make a grammar of more than {MAX_GUIDE_BYTES} bytes"
            raise InvalidRequestError(f"{reason}: send fewer or smaller ones", "tools", "invalid_guide")

    def function(self, function: Mapping[str, Any], where: str) -> str:
        """Write the rule of a function, which begins with the function's name; return the rule's name."""
        number = len(self.rules)
        name, strict = f"function_{number}", bool(function.get("strict"))
        self._referred.clear()
        where = f"{where}.parameters"
        root = function.get("parameters") or {}
        if strict:
            _check_root(root, where)
        properties, required = _parameters(root, strict, where)
        self._value_text = _value_text(properties) if strict else "VALUE"
        if self._value_text != "VALUE":  # long, and part of each parameter
            self.add(f"VALUE_{number}: {self._value_text}")
            self._value_text = f"VALUE_{number}"
        parts = [quoted(f"{function['name']}>\n")]
        for key, schema in properties.items():
            if re.search(r"[>\n]|^\s|\s$|^$", key):
                if strict:
                    _refuse(f"{where}.properties", f"the name {key!r} cannot be written in a tag")
                continue
            value = self._value(schema, root, f"{where}.properties.{key}") if strict else self._text()
            parameter = f"{quoted(f'<parameter={key}>' + chr(10))} ({value})"
            self.grow(len(parameter))
            parts.append(parameter if key in required else f"({parameter})?")
        self.add(f"{name}: {' '.join(parts)}")
        return name

    def _text(self) -> str:
        """Any text."""
        if self._free is None:
            self._free = self._terminal("VALUE")
        return self._free

    def _terminal(self, texts: str) -> str:
        """Write a terminal of these texts and the closing tag. As one terminal it ends where the tag ends."""
        name = f"TEXT_{len(self.rules)}"
        self.add(f"{name}: ({texts}) {_END}")
        return name

    def _value(self, schema: Any, root: Mapping[str, Any], where: str) -> str:
        """The alternatives for a value and its closing tag."""
        types = json_types(schema, root)
        others = types - {"string"}
        alternatives = []
        if not others or "string" in types:
            texts = self._texts(schema, root, where)
            if texts is not None and others:
                texts = f"({texts}) & NO_CONSTANT"
                if others - {"null", "boolean"}:
                    texts = f"{texts} & NO_JSON"
            if texts == _ANY_TEXT:
                alternatives.append(self._text() if self._value_text == "VALUE" else self._terminal(self._value_text))
            elif texts is not None:
                alternatives.append(self._terminal(f"({texts}) & {self._value_text}"))
        if others:
            if "string" in types or _TYPING.isdisjoint(schema):
                schema = {"allOf": [schema, {"type": sorted(others)}]}
            definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}
            text = schema_text({**schema, **definitions}, where)
            self.grow(len(text))  # many parameters may each repeat large definitions
            alternatives.append(f"%json {text} {_END}")
        if not alternatives:
            _refuse(where, "it allows no value")
        return " | ".join(alternatives)

    def _texts(self, schema: Any, root: Mapping[str, Any], where: str, depth: int = 0) -> str | None:
        """The valid strings as an expression of terminals; None if the schema allows no string."""
        self._num_schemas += 1
        if self._num_schemas > _MAX_SCHEMAS:
            _refuse(where, f"the strict tools have more than {_MAX_SCHEMAS} schemas of strings")
        if depth > MAX_NESTING:
            _refuse(where, f"it is nested deeper than {MAX_NESTING} levels")
        if schema is True:
            return _ANY_TEXT
        if not isinstance(schema, Mapping):
            if schema is False:
                return None
            _refuse(where, "it must be an object, true or false")
        for keyword in _NOT_FOLLOWED:
            if keyword in schema:
                _refuse(where, f"{keyword} cannot be followed for a string")
        declared = schema.get("type", "string")
        if "string" not in ([declared] if isinstance(declared, str) else _list(declared, f"{where}.type")):
            return None
        parts: list[str | None] = []
        if "$ref" in schema:
            parts.append(self._target(schema["$ref"], root, where, depth))
        for values in (schema.get("enum"), [schema["const"]] if "const" in schema else None):
            if values is not None:
                texts = _list(values, f"{where}.enum")
                parts.append(_either([quoted(value) for value in texts if isinstance(value, str)]))
        all_of = _list(schema.get("allOf", ()), f"{where}.allOf")
        parts += [self._texts(part, root, where, depth + 1) for part in all_of]
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                branches = _list(schema[keyword], f"{where}.{keyword}")
                found = [self._texts(part, root, where, depth + 1) for part in branches]
                strings = [part for part in found if part is not None]
                if keyword == "oneOf" and len(strings) > 1:
                    _refuse(where, "oneOf of several strings cannot be followed: use anyOf")
                parts.append(_either(strings))
        parts += _bounds(schema, where)
        if any(part is None for part in parts):
            return None
        return " & ".join(f"({part})" for part in parts) or _ANY_TEXT

    def _target(self, reference: Any, root: Mapping[str, Any], where: str, depth: int) -> str | None:
        """The valid strings of a reference's target: a terminal of its own, however often it is referred to."""
        if not isinstance(reference, str):
            _refuse(where, "$ref must be a text")
        if reference in self._open:
            _refuse(where, f"the reference {reference!r} leads to itself")
        if reference not in self._referred:
            target = resolved(reference, root)
            if target is None:
                _refuse(where, f"the reference {reference!r} leads nowhere")
            self._open.add(reference)
            texts = self._texts(target, root, where, depth + 1)
            self._open.discard(reference)
            name = None
            if texts is not None:
                name = f"TARGET_{len(self.rules)}"
                self.add(f"{name}: {texts}")
            self._referred[reference] = name
        return self._referred[reference]


def _value_text(properties: Mapping[str, Any]) -> str:
    """The terminal of a strict function's values. <parameter=NAME> of another one would end a value that is not closed.

    A value without a closing tag in it can only be closed by its own, so the only parameter may be spoken of.
    """
    if len(properties) < 2:
        return "VALUE"
    names = "|".join(re.escape(name).replace("/", r"\/") for name in properties)
    return f"VALUE & ~/(?s:.*)<parameter=({names})>(?s:.*)/"


def _check_root(root: Mapping[str, Any], where: str) -> None:
    odd = sorted(root.keys() - _ROOT_KEYWORDS - _ANNOTATIONS)
    if odd:
        _refuse(where, f"{odd[0]} next to properties is not supported")
    if root.get("type", "object") != "object":
        _refuse(f"{where}.type", "it must be 'object'")


def _parameters(root: Mapping[str, Any], strict: bool, where: str) -> tuple[dict[str, Any], frozenset[str]]:
    """Schemas by name, in order, and the required names. Malformed parts count as empty unless the tool is strict."""
    properties, required = root.get("properties", {}), root.get("required", [])
    if not isinstance(properties, Mapping):
        if strict:
            _refuse(f"{where}.properties", "it must be an object")
        properties = {}
    if not isinstance(required, (list, tuple)) or not all(isinstance(name, str) for name in required):
        if strict:
            _refuse(f"{where}.required", "it must be a list of names")
        required = []
    found = dict(properties)
    for name in required:
        found.setdefault(name, root.get("additionalProperties", True))
    return found, frozenset(required)


def _bounds(schema: Mapping[str, Any], where: str) -> list[str]:
    """Length, pattern and format."""
    bounds = []
    least, most = schema.get("minLength"), schema.get("maxLength")
    if least is not None or most is not None:
        if not all(type(n) is int and 0 <= n <= _MAX_LENGTH for n in (least or 0, most or 0)):
            _refuse(where, f"minLength and maxLength must be numbers up to {_MAX_LENGTH}")
        bounds.append(f"/(?s:.{{{least or 0},{'' if most is None else most}}})/")
    if "pattern" in schema:
        bounds.append(_searched(schema["pattern"], f"{where}.pattern"))
    if "format" in schema:
        if not isinstance(schema["format"], str) or schema["format"] not in _FORMATS:
            _refuse(f"{where}.format", f"a string's format must be one of {', '.join(_FORMATS)}")
        bounds.append(f"/{_FORMATS[schema['format']]}/")
    return bounds


def _searched(pattern: Any, where: str) -> str:
    """A pattern as a terminal. JSON Schema searches it in a string; a terminal matches the whole string."""
    from llguidance import regex_to_lark

    if not isinstance(pattern, str):
        _refuse(where, "it must be a string")
    outline = outline_of(pattern)
    if outline.has_other_anchors or (outline.has_alternatives and (outline.begins or outline.ends)):
        _refuse(where, "write it as ^(...)$, without other anchors")
    begins, ends = outline.begins, outline.ends
    inner = pattern[int(begins) : len(pattern) - int(ends)]
    before, after = "" if begins else "(?s:.*)", "" if ends else "(?s:.*)"
    return f"/{before}({regex_to_lark(inner, 'dw')}){after}/"


def _either(parts: Sequence[str]) -> str | None:
    return " | ".join(parts) or None


def _list(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        _refuse(where, "it must be a list")
    return value


def _refuse(where: str, reason: str) -> NoReturn:
    raise InvalidRequestError(f"{where} cannot be followed: {reason}", where, "invalid_guide")
