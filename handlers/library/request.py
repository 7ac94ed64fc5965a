"""What a program asks for, as the neutral request of handlers/chat/, with what turns its parts into an Answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import msgspec
from msgspec import Struct

from qwonnx.handlers.chat import tools as tool_forms
from qwonnx.handlers.chat.answer_form import AnswerForm
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.chat.sampling_fields import sampling_fields, sampling_struct
from qwonnx.handlers.chat.text_request import TextRequest
from qwonnx.handlers.chat.validation import of_validation
from qwonnx.handlers.library.answer import AnswerBuilder
from qwonnx.handlers.library.conversation import Messages, template_messages
from qwonnx.handlers.library.errors import in_python_words
from qwonnx.handlers.library.functions import tools_of
from qwonnx.handlers.library.schemas import AnswerSchema
from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.params import PARAMETERS
from qwonnx.runtime.text.tokenizer import Tokenizer

_SAMPLING = sampling_struct(None)
_CHOICES = ("auto", "none", "required")


class Asked(Struct, frozen=True):
    """A request.

    neutral: for begin().
    schema: that the answer follows, or None.
    functions: Python functions that are tools, by name.
    logprobs: they are asked for.
    """

    neutral: ChatRequest | TextRequest
    schema: AnswerSchema | None
    functions: Mapping[str, Callable[..., Any]]
    logprobs: bool

    def builder(self, tokenizer: Tokenizer) -> AnswerBuilder:
        """Makes the answer to it."""
        return AnswerBuilder(tokenizer, self.schema, self.functions, logprobs=self.logprobs)


def chat_request(
    messages: Messages,
    *,
    system: str | None = None,
    tools: Iterable[Any] | None = None,
    tool_choice: str | None = None,
    schema: Any = None,
    regex: str | None = None,
    thinking: bool | None = None,
    thinking_budget: int | None = None,
    logprobs: int | None = None,
    sampling: Mapping[str, Any],
) -> Asked:
    """A chat; see AsyncLLM.chat().

    Raises:
        InvalidRequestError: something that is given is malformed.
    """
    offered, functions = tools_of(tools or ())
    form = None if schema is None else AnswerSchema(schema)
    choice = tool_choice or "auto"
    if choice not in _CHOICES and all(tool.function.name != choice for tool in offered):
        raise InvalidRequestError(
            f"tool_choice is {choice!r}: give a tool's name, {', '.join(_CHOICES)}", "tool_choice"
        )
    if choice == "required" and not offered:
        raise InvalidRequestError("tool_choice is 'required' and there are no tools: give tools", "tool_choice")
    if thinking_budget is not None and (isinstance(thinking_budget, bool) or thinking_budget < 1):
        raise InvalidRequestError(f"thinking_budget is {thinking_budget}: give at least 1", "thinking_budget")
    callable_tools = [] if choice == "none" else offered
    guide = AnswerForm(
        tools=callable_tools,
        required=choice == "required",
        named=choice if choice not in _CHOICES else None,
        schema=None if form is None else form.document,
    ).guide
    if regex is not None:
        if form is not None or callable_tools:
            raise InvalidRequestError("regex contradicts schema and tools: give one of them", "regex")
        guide = _expression(regex)
    return Asked(
        ChatRequest(
            messages=template_messages(messages, system),
            tools=tool_forms.template_tools(callable_tools),
            sampling=_sampling(sampling, logprobs),
            guide=guide if callable_tools or form is not None or regex is not None else None,
            thinking=thinking,
            thinking_budget=thinking_budget,
        ),
        form,
        functions,
        logprobs is not None,
    )


def text_request(
    prompt: str,
    *,
    schema: Any = None,
    regex: str | None = None,
    logprobs: int | None = None,
    sampling: Mapping[str, Any],
) -> Asked:
    """A text that goes on; see AsyncLLM.generate().

    Raises:
        InvalidRequestError: something that is given is malformed.
    """
    if not isinstance(prompt, str):
        raise InvalidRequestError(f"the prompt is {type(prompt).__name__}: give a text, or a list of texts", "prompts")
    form = None if schema is None else AnswerSchema(schema)
    if form is not None and regex is not None:
        raise InvalidRequestError("regex contradicts schema: give one of them", "regex")
    guide = None if form is None else AnswerForm(schema=form.document).guide
    guide = guide if regex is None else _expression(regex)
    return Asked(TextRequest(prompt, _sampling(sampling, logprobs), guide), form, {}, logprobs is not None)


def _expression(regex: str) -> Callable[[], Guide]:
    return lambda: Guide.regex(regex, "regex")


def _sampling(given: Mapping[str, Any], logprobs: int | None) -> dict[str, Any]:
    """Fields of SamplingParams.

    Raises:
        InvalidRequestError: a name is unknown, or a value is not of its kind or out of range.
    """
    for name in given:
        if name not in PARAMETERS:
            likely = get_close_matches(name, PARAMETERS, n=1)
            remedy = f"did you mean {likely[0]}?" if likely else f"there are {', '.join(PARAMETERS)}"
            raise InvalidRequestError(f"there is no sampling parameter {name!r}: {remedy}", name, "unknown_parameter")
    values = {name: value for name, value in given.items() if value is not None}
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    try:
        msgspec.convert(values, _SAMPLING)
    except msgspec.ValidationError as error:
        raise in_python_words(of_validation(error, "sampling")) from error
    return {**sampling_fields(values), "logprobs": logprobs}
