"""Classes as JSON schemas, and texts as their instances: pydantic's models, dataclasses, Structs and other types."""

from __future__ import annotations

from typing import Any

import msgspec

from qwonnx.handlers.library.errors import AnswerError
from qwonnx.runtime.errors import InvalidRequestError

_KINDS = "give a pydantic model, a dataclass, a msgspec.Struct, a TypedDict or a JSON schema as a dictionary"


class AnswerSchema:
    """The form of an answer.

    Args:
        given: a class, or a JSON schema.

    Raises:
        InvalidRequestError: it is neither, or a type that has no schema.
    """

    def __init__(self, given: Any) -> None:
        self._given = given
        self.document: dict[str, Any] = schema_of(given, "schema")

    def parsed(self, text: str) -> Any:
        """The value of an answer.

        Raises:
            AnswerError: a check of the class refuses it.
        """
        try:
            if isinstance(self._given, dict):
                return msgspec.json.decode(text)
            if _is_pydantic(self._given):
                return self._given.model_validate_json(text)
            return msgspec.json.decode(text, type=self._given)
        except ValueError as error:  # also pydantic's and msgspec's
            name = getattr(self._given, "__name__", "the schema")
            raise AnswerError(f"the answer is not a valid {name} ({' '.join(str(error).split())[:300]})") from error


def schema_of(given: Any, parameter: str) -> dict[str, Any]:
    """The JSON schema of a class or a type. Objects of a class have no other properties than its fields.

    Args:
        given: the type, or a schema, which stays as it is.
        parameter: what it was given as, for errors.

    Raises:
        InvalidRequestError: there is no schema for it.
    """
    if isinstance(given, dict):
        return given
    try:
        document = given.model_json_schema() if _is_pydantic(given) else msgspec.json.schema(given)
    except (TypeError, ValueError) as error:  # pydantic's errors are both
        raise InvalidRequestError(f"{parameter} is {given!r}, which has no JSON schema: {_KINDS}", parameter) from error
    made: dict[str, Any] = closed(document)
    return made


def closed(schema: Any) -> Any:
    """A schema whose objects with properties take no others, unless they say so."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(value) for name, value in schema.items()}
    if made.get("type") == "object" and "properties" in made:
        made.setdefault("additionalProperties", False)
    return made


def _is_pydantic(given: Any) -> bool:
    """Whether it is a pydantic model, without importing pydantic."""
    return isinstance(given, type) and hasattr(given, "model_json_schema") and hasattr(given, "model_validate_json")
