"""The form of an answer as one guide, from response_format, structured_outputs and tools of a chat request.

Tools and a response_format may be combined: the answer is then tool calls, or has that format.
"""

from __future__ import annotations

from typing import Any

import msgspec

from qwonnx.handlers import errors
from qwonnx.handlers.chat.answer_form import AnswerForm
from qwonnx.handlers.openai.chat_protocol import (
    ChatCompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
)
from qwonnx.handlers.openai.generation_fields import StructuredOutputs
from qwonnx.runtime.sampling import form_size
from qwonnx.runtime.sampling.guide import Guide

_SCHEMA_PARAM = "response_format.json_schema.schema"


def may_have_form(request: ChatCompletionRequest) -> bool:
    """False if of_request() would return None for certain; at once."""
    formats = isinstance(request.response_format, JsonObjectFormat | JsonSchemaFormat)
    return formats or request.structured_outputs is not None or bool(request.tools)


def of_request(request: ChatCompletionRequest) -> Guide | None:
    """The guide of a request, or None.

    Args:
        request: checked.

    Raises:
        ServiceError: 400, it asks for two forms.
        InvalidRequestError: a schema cannot be followed; compilation may find other reasons.
    """
    asked, form = request.structured_outputs, _form(request)
    if asked is None:
        return form.guide()
    if form.tools:
        message = "structured_outputs contradicts tools that may be called: set tool_choice to 'none'"
        raise errors.invalid(message, "structured_outputs")
    if form.schema is not None:
        raise errors.invalid("structured_outputs contradicts response_format: send one of them", "response_format")
    return of_structured_outputs(asked)


def _form(request: ChatCompletionRequest) -> AnswerForm:
    choice = request.tool_choice
    return AnswerForm(
        tools=[] if choice == "none" else request.tools or [],
        required=choice == "required",
        named=choice.function.name if isinstance(choice, NamedTool) else None,
        parallel=request.parallel_tool_calls is not False,
        schema=_schema(request),
        schema_parameter=_SCHEMA_PARAM,
    )


def _schema(request: ChatCompletionRequest) -> dict[str, Any] | bool | None:
    match request.response_format:
        case JsonObjectFormat():
            return {"type": "object"}
        case JsonSchemaFormat(json_schema):
            return json_schema.schema
    return None


def of_structured_outputs(asked: StructuredOutputs) -> Guide | None:
    """The guide of an explicit form.

    Raises:
        ServiceError: 400, it asks for two forms.
        InvalidRequestError: a form cannot be followed.
    """
    given = [name for name in asked.__struct_fields__ if getattr(asked, name) is not None]
    if asked.json_object is False:
        given.remove("json_object")
    if len(given) != 1:
        message = f"structured_outputs has {len(given)} forms ({', '.join(given)}): give one"
        raise errors.invalid(message, "structured_outputs")
    param = f"structured_outputs.{given[0]}"
    if asked.json is not None:
        return Guide.json_schema(_parsed(asked.json, param), param)
    if asked.regex is not None:
        return Guide.regex(asked.regex, param)
    if asked.choice is not None:
        return Guide.choice(asked.choice, param)
    if asked.grammar is not None:
        return Guide.lark(asked.grammar, param)
    return Guide.json_object(param)


def _parsed(schema: dict[str, Any] | bool | str, param: str) -> dict[str, Any] | bool:
    """A schema, which may be sent as text."""
    if not isinstance(schema, str):
        return schema
    form_size.check_text(schema, param)
    try:
        return msgspec.json.decode(schema, type=dict[str, Any] | bool)
    except (msgspec.DecodeError, RecursionError) as error:
        raise errors.invalid(f"{param} is not the JSON text of a schema: {error}", param) from error
