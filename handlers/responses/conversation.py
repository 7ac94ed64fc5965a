"""The items of an input as the messages that chat templates take.

The items of one turn of the model become one message: its reasoning, then text and calls. A turn ends where someone
else speaks, where it thinks again after it has spoken, and between two messages that follow each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from qwonnx.handlers import errors
from qwonnx.handlers.chat.bounds import ConversationBounds
from qwonnx.handlers.responses import items as item_types
from qwonnx.handlers.responses import sealed_reasoning
from qwonnx.handlers.responses.items import (
    GivenCall,
    GivenCallOutput,
    GivenCustomCall,
    GivenCustomCallOutput,
    GivenMessage,
    GivenReasoning,
    Item,
    ItemReference,
)
from qwonnx.handlers.responses.tools import CUSTOM_ARGUMENT, flat_name

_MAX_REASONING_CHARACTERS = 8 << 20  # that are unpacked, of all items
_SYSTEM_ROLES = ("system", "developer")


def check_bounds(items: Sequence[Item]) -> None:
    """Check the numbers of parts, calls and of values in their arguments.

    Raises:
        ServiceError: 400, with the item at fault as param.
    """
    bounds = ConversationBounds()
    for index, item in enumerate(items):
        where = f"input[{index}]"
        bounds.parts(_num_parts(item), where)
        if isinstance(item, GivenCall):
            bounds.calls([item.arguments.encode(errors="replace")], where)
        elif isinstance(item, GivenCustomCall):
            bounds.calls([b""], where)
    bounds.end("input")


def messages_of(items: Sequence[Item], instructions: str | None) -> list[dict[str, Any]]:
    """The conversation: instructions, then the items in order. `developer` is `system`.

    Raises:
        ServiceError: 400, an item cannot be read without stored responses, or is not text; too many messages.
    """
    builder = _Builder()
    if instructions:
        builder.messages.append({"role": "system", "content": instructions})
    for index, item in enumerate(items):
        builder.add(item, f"input[{index}]")
    builder.end_turn()
    ConversationBounds().messages(len(builder.messages), "input")
    return builder.messages


class _Turn:
    """What the model did in one turn, so far."""

    def __init__(self) -> None:
        self.reasoning: list[str] = []
        self.texts: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.ends_with_message = False

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.texts)}
        if self.reasoning:
            message["reasoning_content"] = "\n".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = self.calls
        return message


class _Builder:
    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._turn: _Turn | None = None
        self._num_unpacked = 0

    def add(self, item: Item, where: str) -> None:
        match item:
            case GivenMessage(role="assistant"):
                self._say(item_types.text_of(item.content, f"{where}.content"))
            case GivenMessage():
                self.end_turn()
                role = "system" if item.role in _SYSTEM_ROLES else "user"
                content = item_types.text_of(item.content, f"{where}.content")
                self.messages.append({"role": role, "content": content})
            case GivenReasoning():
                self._think(item, where)
            case GivenCall():
                self._call(item, item.arguments)
            case GivenCustomCall():
                self._call(item, msgspec.json.encode({CUSTOM_ARGUMENT: item.input}).decode())
            case GivenCallOutput() | GivenCustomCallOutput():
                self.end_turn()
                content = item_types.text_of(item.output, f"{where}.output")
                answered: dict[str, Any] = {"role": "tool", "content": content}
                if item.call_id is not None:
                    answered["tool_call_id"] = item.call_id
                self.messages.append(answered)
            case ItemReference():
                pass  # to reasoning that is gone: without it the answer is still right

    def end_turn(self) -> None:
        if self._turn is not None:
            self.messages.append(self._turn.message())
            self._turn = None

    def _open(self) -> _Turn:
        if self._turn is None:
            self._turn = _Turn()
        self._turn.ends_with_message = False
        return self._turn

    def _say(self, text: str) -> None:
        if self._turn is not None and self._turn.ends_with_message:
            self.end_turn()
        turn = self._open()
        turn.texts.append(text)
        turn.ends_with_message = True

    def _think(self, item: GivenReasoning, where: str) -> None:
        text = self._thoughts(item, where)
        if not text:
            return  # another server's
        if self._turn is not None and (self._turn.texts or self._turn.calls):
            self.end_turn()
        self._open().reasoning.append(text)

    def _thoughts(self, item: GivenReasoning, where: str) -> str:
        if item.content:
            return "".join(part.text for part in item.content)
        if item.encrypted_content is not None:
            text = sealed_reasoning.opened(item.encrypted_content)
            if text is not None:
                self._num_unpacked += len(text)
                if self._num_unpacked > _MAX_REASONING_CHARACTERS:
                    param = f"{where}.encrypted_content"
                    message = f"the reasoning up to {param} is longer than {_MAX_REASONING_CHARACTERS} characters"
                    raise errors.invalid(f"{message}: leave out older items", param, "string_above_max_length")
                return text
        return "\n".join(part.text for part in item.summary or ())

    def _call(self, item: GivenCall | GivenCustomCall, arguments: str) -> None:
        function = {"name": flat_name(item.name, item.namespace), "arguments": arguments}
        self._open().calls.append({"id": item.call_id, "type": "function", "function": function})


def _num_parts(item: Item) -> int:
    match item:
        case GivenMessage(content=parts) | GivenCallOutput(output=parts) | GivenCustomCallOutput(output=parts):
            return 1 if isinstance(parts, str) else max(1, len(parts))
        case GivenReasoning():
            return max(1, len(item.summary or ()) + len(item.content or ()))
    return 1
