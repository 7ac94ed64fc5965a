"""Arguments of a tool call: the model's raw text, converted to the types of the tool's JSON schema.

The model writes every value as plain text, so 5 may be a number or a string; only the schema decides. A value that does
not fit its schema stays a string, which the caller's own validation can refuse.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

_MAX_REFERENCES = 8  # of a schema to another; more are treated as a loop

# JSON's constants, and Python's spellings, which some templates teach the model.
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}


class ToolSchemas:
    """The parameter schemas of a request's tools, by function name.

    Args:
        tools: OpenAI's form, `{"type": "function", "function": {"name", "parameters"}}`, or the function alone.
    """

    def __init__(self, tools: Iterable[Mapping[str, Any]]) -> None:
        self._parameters: dict[str, Mapping[str, Any]] = {}
        for tool in tools:
            function = tool.get("function", tool)
            if isinstance(function, Mapping) and isinstance(function.get("parameters"), Mapping):
                self._parameters[str(function.get("name"))] = function["parameters"]

    def arguments_json(self, function: str, values: Mapping[str, str]) -> str:
        """JSON text of the arguments object. A parameter without a schema is a string."""
        root = self._parameters.get(function, {})
        properties = root.get("properties")
        schemas = properties if isinstance(properties, Mapping) else {}
        arguments = {key: _coerced(text, json_types(schemas.get(key), root)) for key, text in values.items()}
        return json.dumps(arguments, ensure_ascii=False)


def json_types(schema: Any, root: Mapping[str, Any], depth: int = 0) -> frozenset[str]:
    """JSON types a schema allows; empty if it does not say."""
    if not isinstance(schema, Mapping) or depth > _MAX_REFERENCES:
        return frozenset()
    declared = schema.get("type")
    if isinstance(declared, str):
        return frozenset([declared])
    if isinstance(declared, list):
        return frozenset(name for name in declared if isinstance(name, str))
    if isinstance(schema.get("enum"), list):
        return frozenset(_type_of(value) for value in schema["enum"])
    if "const" in schema:
        return frozenset([_type_of(schema["const"])])
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return json_types(resolved(reference, root), root, depth + 1)
    found: frozenset[str] = frozenset()
    for combination in ("anyOf", "oneOf", "allOf"):
        choices = schema.get(combination)
        for choice in choices if isinstance(choices, list) else ():
            found |= json_types(choice, root, depth + 1)
    return found


def resolved(reference: str, root: Mapping[str, Any]) -> Any:
    """The target of a "#/$defs/Name" reference, or None."""
    if not reference.startswith("#/"):
        return None
    place: Any = root
    for part in reference[2:].split("/"):
        place = place.get(part) if isinstance(place, Mapping) else None
    return place


def _coerced(text: str, types: frozenset[str]) -> Any:
    if not types - {"string"}:
        return text
    stripped = text.strip()
    try:
        value = _CONSTANTS[stripped] if stripped in _CONSTANTS else json.loads(stripped)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # Python reads NaN, 1e999, lone surrogates
    except (ValueError, RecursionError):
        return text
    if isinstance(value, float) and "integer" in types and value.is_integer() and "number" not in types:
        value = int(value)  # 5.0 is an integer in JSON Schema
    kind = _type_of(value)
    fits = kind in types or (kind == "integer" and "number" in types)
    return value if fits and kind != "string" else text


def _type_of(value: Any) -> str:
    """JSON Schema's name for a parsed value's type."""
    if isinstance(value, bool):
        return "boolean"
    names = {dict: "object", list: "array", str: "string", int: "integer", float: "number"}
    return names.get(type(value), "null")
