"""A system prompt from a file: the system messages and tools at the beginning of a conversation.

    {"messages": [{"role": "system", "content": "Be brief."}], "tools": [{"type": "function", "function": {...}}]}

Both fields are optional. `developer` is another name of `system`; content may be a list of `{"type": "text", "text":
...}`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from qwonnx.handlers.chat import tools as tool_forms
from qwonnx.handlers.chat.tools import Tools
from qwonnx.handlers.chat.validation import Strict, of_validation
from qwonnx.handlers.errors import ServiceError
from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.text.chat_prompt import SystemPrompt

_FIELDS = ("messages", "tools")
_OTHER_ROLES = ("user", "assistant", "tool")


class _TextPart(Strict, tag_field="type", tag="text"):
    text: str


class _SystemMessage(Strict, tag_field="role", tag="system"):
    content: str | list[_TextPart]
    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system", "content": content} | ({} if self.name is None else {"name": self.name})


class _DeveloperMessage(_SystemMessage, tag_field="role", tag="developer"):
    pass


class _Document(Strict):
    messages: list[_SystemMessage | _DeveloperMessage] = msgspec.field(default_factory=list)
    tools: Tools | None = None


def parse_prompt(document: bytes | str) -> SystemPrompt:
    """A system prompt from JSON: `messages`, only of the system, and `tools`.

    Raises:
        InvalidRequestError: the document is invalid; the message names the field at fault, which is its param.
    """
    try:
        fields = msgspec.json.decode(document)
        _check_outline(fields)
        parsed = msgspec.convert(fields, _Document)
        tools = parsed.tools or []
        tool_forms.check_names(tools)
    except msgspec.ValidationError as error:
        refusal = of_validation(error, "the prompt")
        raise InvalidRequestError(refusal.message, refusal.parameter, refusal.code) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the prompt is not valid JSON ({error})") from error
    except ServiceError as error:
        raise InvalidRequestError(error.message, error.parameter, error.code) from error
    return SystemPrompt([message.for_template() for message in parsed.messages], tool_forms.template_tools(tools))


def _check_outline(fields: object) -> None:
    """Check that it is an object of messages and tools, with system messages only."""
    if not isinstance(fields, dict) or not isinstance(fields.get("messages", []), list):
        raise InvalidRequestError("the prompt is not an object with a list of messages: give messages and tools")
    if unknown := sorted(fields.keys() - set(_FIELDS)):
        raise InvalidRequestError(f"the prompt has {unknown[0]}: give only messages and tools", unknown[0])
    for index, message in enumerate(fields.get("messages", [])):
        role = message.get("role") if isinstance(message, dict) else None
        if role in _OTHER_ROLES:
            parameter = f"messages[{index}]"
            raise InvalidRequestError(f"{parameter} has the role {role}: give only system messages", parameter)
