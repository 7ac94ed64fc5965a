"""The checkpoint's chat template: it renders a conversation as the text that the model was trained to read.

Templates are Jinja programs that come with a model. They run in a sandbox, in the environment that transformers gives
them (whitespace rules, `tojson`, `raise_exception`, `strftime_now`, loop controls). Their size and output are bounded;
the sandbox bounds their ranges. Every failure of a template is a TemplateError.
"""

from __future__ import annotations

from typing import Any

import jinja2

from qwonnx.runtime.errors import TemplateError
from qwonnx.runtime.text.cut_json import object_of
from qwonnx.runtime.text.template_environment import TemplateEnvironment
from qwonnx.runtime.text.template_text import TemplateText, joined, own, plain

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})  # no request can choose another text for these

MAX_SOURCE_CHARACTERS = 1 << 20
MAX_RENDERED_CHARACTERS = 16 << 20  # about 4 million tokens of English; the engine checks the exact limit


class ChatTemplate:
    """A Jinja chat template, sandboxed and bounded. Safe to use from several threads.

    Args:
        source: the text of chat_template.jinja.

    Raises:
        TemplateError: too long, or not Jinja.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise TemplateError(f"the chat template has {len(source)} characters: at most {MAX_SOURCE_CHARACTERS} fit")
        try:
            self._template = TemplateEnvironment().from_string(source)
        except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            # Errors of Jinja, and of Python's compiler, which gets the code that Jinja makes of a template.
            raise TemplateError(f"the chat template is malformed: {str(error) or type(error).__name__}") from error

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> TemplateText:
        """Text of a conversation, by default ending where the model's answer begins; it knows what the template wrote.

        Args:
            messages: OpenAI's form. Content is a string or a list of parts, as the template expects. Arguments of tool
                calls may be JSON text, as OpenAI sends them; templates see the object.
            tools: OpenAI's form, as the template puts them into the prompt.
            add_generation_prompt: open the assistant's turn.
            variables: the template's own switches (enable_thinking, ...).

        Raises:
            TemplateError: the template raises or fails.
        """
        prepared = [_with_own_role(_with_parsed_arguments(message)) for message in messages]
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(
                messages=prepared, tools=tools, add_generation_prompt=add_generation_prompt, **variables
            ):
                length += len(piece)
                if length > MAX_RENDERED_CHARACTERS:
                    raise TemplateError(f"the conversation exceeds {MAX_RENDERED_CHARACTERS} characters: shorten it")
                pieces.append(piece)
        except TemplateError:
            raise
        except jinja2.TemplateError as error:
            raise TemplateError(plain(str(error))) from error
        except Exception as error:  # a template can fail like any program
            raise TemplateError(f"the chat template cannot render this conversation: {error}") from error
        text = joined(pieces)
        return text if isinstance(text, TemplateText) else TemplateText(text)


def _with_own_role(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose role counts as the template's own text: some write it into a token, as in <|user|>."""
    role = message.get("role") if isinstance(message, dict) else None
    return {**message, "role": own(role)} if isinstance(role, str) and role in _ROLES else message


def _with_parsed_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose tool calls have objects as arguments; other messages are returned unchanged.

    An answer that was cut may have cut arguments. Its history is accepted, with what was written.

    Raises:
        TemplateError: arguments that are not the JSON text of an object, nor the beginning of one.
    """
    calls = message.get("tool_calls")
    if not isinstance(calls, (list, tuple)):
        return message
    return {**message, "tool_calls": [_with_parsed_call(call) for call in calls]}


def _with_parsed_call(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _with_parsed_call(call["function"])}
    text = call.get("arguments")
    if not isinstance(text, str):
        return call
    arguments = object_of(text)
    if arguments is None:
        raise TemplateError(f"arguments of a tool call are {text[:40]!r}: send an object's JSON text")
    return {**call, "arguments": arguments}
