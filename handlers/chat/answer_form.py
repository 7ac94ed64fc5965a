"""The form of an answer that tools and a schema ask for, independent of an API.

Tools and a schema may be combined: the answer is then tool calls, or JSON by the schema. Clients that want structured
output often force a call of a tool that is not strict: its arguments follow the schema too, if that can be followed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from qwonnx.handlers.chat.tools import Tool
from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.sampling.guide import Guide


class AnswerForm(Struct, frozen=True):
    """What tools and a schema say about the form.

    tools: that may be called.
    required: at least one of them must be called.
    named: the one that must be called; None leaves the choice.
    parallel: several calls may follow each other.
    schema: of an answer that is not a call; None leaves it free.
    schema_parameter: the API's name of the schema, for errors.
    """

    tools: Sequence[Tool] = ()
    required: bool = False
    named: str | None = None
    parallel: bool = True
    schema: dict[str, Any] | bool | None = None
    schema_parameter: str = "schema"

    def guide(self) -> Guide | None:
        """The guide of this form; None if the answer is free. Calls of strict tools are guided wherever they come.

        Raises:
            InvalidRequestError: a schema cannot be followed; compilation may find other reasons.
        """
        required = self.required or self.named is not None
        if self.tools and (required or self.schema is not None or any(tool.function.strict for tool in self.tools)):
            tools = [msgspec.to_builtins(tool) for tool in self.tools]
            guide = self._calls(tools)
            return self._forced(tools, guide) if required else guide
        return None if self.schema is None else Guide.json_schema(self.schema, self.schema_parameter)

    def _calls(self, tools: Sequence[dict[str, Any]]) -> Guide:
        return _tool_guide(
            tools,
            required=self.required or self.named is not None,
            function=self.named,
            parallel=self.named is None and self.parallel,
            answer=self.schema,
        )

    def _forced(self, tools: Sequence[dict[str, Any]], guide: Guide) -> Guide:
        """The form of a call that has to come. The schemas of all tools are followed, of those that can be."""
        strict = [_strict_if_it_can_be(tool) for tool in tools]
        if strict == tools:
            return guide
        try:
            return dataclasses.replace(self._calls(strict), otherwise=guide)
        except InvalidRequestError:  # they are too large together
            return guide


def _strict_if_it_can_be(tool: dict[str, Any]) -> dict[str, Any]:
    strict = tool | {"function": tool["function"] | {"strict": True}}
    try:
        _tool_guide([strict], required=True)
    except InvalidRequestError:
        return tool
    return strict


def _tool_guide(tools: Sequence[dict[str, Any]], **form: Any) -> Guide:
    from qwonnx.runtime.sampling.tool_grammar import tool_guide  # most answers have no such form

    return tool_guide(tools, **form)
