"""Guides: the form of an answer, as a JSON schema, a regular expression, a list of texts or a grammar.

form_size.py checks size and nesting. grammar.py knows the tokens, so it checks whether a guide can be followed.
tool_grammar.py makes a grammar of tool calls.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.sampling import form_size

# White space between JSON's tokens: a space, or a line break with its indentation. A confused model that likes white
# space best goes on after one of them; with longer runs it would write little else up to its limit.
_WHITE_SPACE = r"\x20|\x0A[\x20\x09]{0,32}"
_JSON_OPTIONS = {"whitespace_pattern": _WHITE_SPACE, "lenient": False, "coerce_one_of": False}


class GuideKind(Enum):
    """The language a guide is written in."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"  # llguidance's variant of Lark


@dataclass(frozen=True, slots=True)
class Guide:
    """The form of one answer.

    kind, source: the form, as json_schema(), regex(), choice() and lark() write it.
    param: the request's parameter that asked for it, for errors.
    after_thinking: the prompt ends inside <think>. The reasoning is free; the form applies to the text after </think>,
        except for up to two line breaks.
    otherwise: counts if this one cannot be followed. None: the request is then refused.

    Raises:
        InvalidRequestError: too large.
    """

    kind: GuideKind
    source: str
    param: str = "guide"
    after_thinking: bool = False
    otherwise: Guide | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        form_size.check_text(self.source, self.param)

    def begun(self, *, after_thinking: bool) -> Guide:
        """The form of an answer whose prompt ends inside <think>, or not."""
        otherwise = None if self.otherwise is None else self.otherwise.begun(after_thinking=after_thinking)
        return dataclasses.replace(self, after_thinking=after_thinking, otherwise=otherwise)

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool, param: str = "guide") -> Guide:
        """A JSON text that is valid by this schema (draft 2020-12, as far as llguidance knows it).

        Raises:
            InvalidRequestError: too large, nested too deeply, not JSON, or a schema that allows no value.
        """
        return cls(GuideKind.JSON_SCHEMA, schema_text(schema, param), param)

    @classmethod
    def json_object(cls, param: str = "guide") -> Guide:
        """Any JSON object."""
        return cls.json_schema({"type": "object"}, param)

    @classmethod
    def regex(cls, pattern: str, param: str = "guide") -> Guide:
        """A text that this regular expression matches as a whole: Rust's syntax, no look-around.

        Raises:
            InvalidRequestError: too large.
        """
        return cls(GuideKind.REGEX, pattern, param)

    @classmethod
    def choice(cls, options: Sequence[str], param: str = "guide") -> Guide:
        """One of these texts.

        Raises:
            InvalidRequestError: too large, an empty list, or an empty text.
        """
        form_size.check_texts(options, param)
        if not options or not all(options):
            raise InvalidRequestError(f"{param} is empty or has an empty text: give texts to choose from", param)
        return cls(GuideKind.LARK, "start: " + " | ".join(map(quoted, options)), param)

    @classmethod
    def lark(cls, grammar: str, param: str = "guide") -> Guide:
        """A text that follows from `start` of this grammar, in llguidance's variant of Lark.

        Raises:
            InvalidRequestError: too large.
        """
        return cls(GuideKind.LARK, grammar, param)


def schema_text(schema: Mapping[str, Any] | bool, param: str) -> str:
    """A schema as JSON text with our options, for a guide or within a Lark grammar after %json.

    Raises:
        InvalidRequestError: too large, nested too deeply, not JSON, or a schema that allows no value.
    """
    if schema is False:
        raise InvalidRequestError(f"{param} is false, which allows no value: give a schema", param, "invalid_guide")
    if schema is True:
        schema = {}
    form_size.check_value(schema, param)
    try:
        # Replaces such options in the schema: a client must not choose them.
        return json.dumps({**schema, "x-guidance": _JSON_OPTIONS}, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        message = f"{param} is not JSON ({error}): send a JSON schema"
        raise InvalidRequestError(message, param, "invalid_guide") from error


def quoted(text: str) -> str:
    """A text as a Lark literal."""
    return json.dumps(text, ensure_ascii=False)
