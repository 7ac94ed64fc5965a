"""Arguments of a tool call: the model's raw text, converted to the types of the tool's JSON schema.

The model writes every value as plain text, so 5 may be a number or a string; only the schema decides
(schema_types.py). A value that does not fit its schema stays a string, which the caller's own validation can refuse.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from qwonnx.runtime.text import cut_json
from qwonnx.runtime.text.schema_types import TEXT, Allowed, SchemaReader, type_of

# JSON's constants, and Python's spellings, which some templates teach the model.
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}


class ToolSchemas:
    """The parameter schemas of a request's tools, by function name.

    Args:
        tools: OpenAI's form, `{"type": "function", "function": {"name", "parameters"}}`, or the function alone.
    """

    def __init__(self, tools: Iterable[Mapping[str, Any]]) -> None:
        functions = [tool.get("function", tool) for tool in tools]
        named = [function for function in functions if isinstance(function, Mapping) and "name" in function]
        self.names = frozenset(str(function["name"]) for function in named)
        self._readers = {
            str(function["name"]): SchemaReader(function["parameters"])
            for function in named
            if isinstance(function.get("parameters"), Mapping)
        }
        self._parameters: dict[str, frozenset[str]] = {}
        self._allowed: dict[tuple[str, str], Allowed] = {}

    def parameters(self, function: str) -> frozenset[str]:
        """Names of the parameters that a function's schema declares."""
        if function not in self._parameters:
            reader = self._readers.get(function)
            self._parameters[function] = frozenset() if reader is None else reader.property_names()
        return self._parameters[function]

    def is_text(self, function: str, parameter: str) -> bool:
        """Whether each text is a value of a parameter as it stands."""
        return not self._of(function, parameter).types - {"string"}

    def value_json(self, function: str, parameter: str, text: str) -> str:
        """JSON text of a parameter's value. A parameter without a schema is a string."""
        return _json(_coerced(text, self._of(function, parameter)))

    def begun_json(self, function: str, parameter: str, text: str) -> str:
        """The beginning of a value's JSON text, if its text was cut; empty if that is not certain."""
        allowed = self._of(function, parameter)
        value = _coerced(text, allowed)
        if not isinstance(value, str):
            written = _json(value)
            if written == text.strip():
                return written  # a number may have more digits
            return ""
        begun = cut_json.closed(text.lstrip())
        value = None if begun is None else _coerced(begun.text, allowed)
        if begun is None or not isinstance(value, (dict, list)):
            return ""
        return _json(value)[: -begun.num_closing]

    def arguments_json(self, function: str, values: Mapping[str, str]) -> str:
        """JSON text of the arguments object."""
        members = (f"{_json(key)}: {self.value_json(function, key, text)}" for key, text in values.items())
        return f"{{{', '.join(members)}}}"

    def _of(self, function: str, parameter: str) -> Allowed:
        reader = self._readers.get(function)
        if reader is None:
            return TEXT
        found = self._allowed.get((function, parameter))
        if found is None:
            found = self._allowed[function, parameter] = reader.of_property(parameter)
        return found


def text_json(text: str) -> str:
    """A part of a text as it stands in JSON between its quotes."""
    return _json(text)[1:-1]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def json_types(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """JSON types a schema allows; empty if it does not say.

    Args:
        schema: a part of the document.
        root: the document.
    """
    found = SchemaReader(root, nullable=False).allowed(schema)
    return frozenset() if found is None else found.types


def resolved(reference: str, root: Mapping[str, Any]) -> Any:
    """The target of a reference in a document ("#/$defs/Name", "#name"), or None."""
    return SchemaReader(root).target(reference)


def _coerced(text: str, allowed: Allowed) -> Any:
    if not allowed.types - {"string"} or text in allowed.texts:
        return text
    stripped = text.strip()
    try:
        value = _CONSTANTS[stripped] if stripped in _CONSTANTS else json.loads(stripped)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # Python reads NaN, 1e999, lone surrogates
    except (ValueError, RecursionError):
        return text
    if isinstance(value, float) and "integer" in allowed.types and value.is_integer() and "number" not in allowed.types:
        value = int(value)  # 5.0 is an integer in JSON Schema
    kind = type_of(value)
    fits = kind in allowed.types or (kind == "integer" and "number" in allowed.types)
    return value if fits and kind != "string" else text
