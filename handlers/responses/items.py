"""The items of a request's input, each read by its type: messages, reasoning, calls and their outputs.

    {"type": "message", "role": "user", "content": "..."}      also without a type
    {"type": "reasoning", "summary": [...], "content": [...], "encrypted_content": "..."}
    {"type": "function_call", "call_id": "...", "name": "...", "arguments": "{...}"}
    {"type": "function_call_output", "call_id": "...", "output": "..."}
    {"type": "custom_tool_call", ...}, {"type": "custom_tool_call_output", ...}
    {"type": "item_reference", "id": "rs_..."}

Answers are sent back unchanged, so every field of an output item is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Raw

from qwonnx.handlers import errors
from qwonnx.handlers.chat.validation import Strict
from qwonnx.handlers.responses import raw_json

_MAX_SHOWN = 100  # characters of a type or an id that is not known
_REASONING_ID = "rs_"

FindItem = Callable[[str], bytes | None]

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Strict, tag_field="type", tag="input_text"):
    text: str
    prompt_cache_breakpoint: Any = None  # without effect


class GivenOutputText(Strict, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    parsed: Any = None  # OpenAI's client adds this when it parses `text`; same content


class Refusal(Strict, tag_field="type", tag="refusal"):
    """A refusal in an earlier answer; ordinary text for the model."""

    refusal: str


class _Unsupported(Strict):
    detail: Any = None
    file_id: Any = None
    image_url: Any = None
    file_data: Any = None
    file_url: Any = None
    filename: Any = None
    input_audio: Any = None
    prompt_cache_breakpoint: Any = None


class InputImage(_Unsupported, tag_field="type", tag="input_image"):
    pass


class InputFile(_Unsupported, tag_field="type", tag="input_file"):
    pass


class InputAudio(_Unsupported, tag_field="type", tag="input_audio"):
    pass


Part = InputText | GivenOutputText | Refusal | InputImage | InputFile | InputAudio
Content = str | list[Part]


class GivenMessage(Strict):
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    type: Literal["message"] = "message"
    id: str | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None  # without effect


class GivenSummary(Strict):
    text: str
    type: Literal["summary_text"] = "summary_text"


class GivenThought(Strict):
    text: str
    type: Literal["reasoning_text"] = "reasoning_text"


class GivenReasoning(Strict):
    type: Literal["reasoning"]
    summary: list[GivenSummary] | None = None
    content: list[GivenThought] | None = None
    encrypted_content: str | None = None
    id: str | None = None
    status: Status | None = None


class _Call(Strict):
    call_id: str
    name: str
    namespace: str | None = None
    id: str | None = None
    status: Status | None = None
    caller: Any = None
    is_async: bool | None = msgspec.field(default=None, name="async")
    async_: bool | None = None  # how OpenAI's client dumps it


class GivenCall(_Call, kw_only=True):
    """A call that the model made in an earlier turn. The model may have made up its name, and been cut in it."""

    type: Literal["function_call"]
    arguments: str
    parsed_arguments: Any = None  # OpenAI's client adds this when it parses `arguments`; same content


class GivenCustomCall(_Call, kw_only=True):
    type: Literal["custom_tool_call"]
    input: str


class _Output(Strict):
    output: str | list[Part]
    call_id: str | None = None
    id: str | None = None
    status: Status | None = None
    name: str | None = None
    namespace: str | None = None
    caller: Any = None


class GivenCallOutput(_Output, kw_only=True):
    type: Literal["function_call_output"]


class GivenCustomCallOutput(_Output, kw_only=True):
    type: Literal["custom_tool_call_output"]


class ItemReference(Strict):
    """An item that the client believes to be stored."""

    id: str
    type: Literal["item_reference"] | None = None


Item = (
    GivenMessage
    | GivenReasoning
    | GivenCall
    | GivenCallOutput
    | GivenCustomCall
    | GivenCustomCallOutput
    | ItemReference
)


class _Kind(msgspec.Struct):
    """What tells the items apart."""

    type: str | None = None
    role: Any = None
    id: Any = None


_KIND = msgspec.json.Decoder(_Kind)
_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    "message": msgspec.json.Decoder(GivenMessage),
    "reasoning": msgspec.json.Decoder(GivenReasoning),
    "function_call": msgspec.json.Decoder(GivenCall),
    "function_call_output": msgspec.json.Decoder(GivenCallOutput),
    "custom_tool_call": msgspec.json.Decoder(GivenCustomCall),
    "custom_tool_call_output": msgspec.json.Decoder(GivenCustomCallOutput),
    "item_reference": msgspec.json.Decoder(ItemReference),
}


def decoded(items: Sequence[Raw], find: FindItem) -> list[Item]:
    """The items of an input. A reference becomes the item that it names; one to reasoning may stay a reference.

    Args:
        items: JSON.
        find: returns the JSON text of an earlier item by its id, or None.

    Raises:
        ServiceError: 400, with the item or its field as param.
    """
    read: list[Item] = []
    referred: set[str] = set()
    for index, item in enumerate(items):
        where = f"input[{index}]"
        one = _decoded(item, where)
        if isinstance(one, ItemReference):
            if one.id in referred:  # a small body must not become a large conversation
                raise errors.invalid(f"{where} refers to the item of an earlier reference: remove it", f"{where}.id")
            referred.add(one.id)
            one = _referred(one, where, find)
        read.append(one)
    return read


def _referred(reference: ItemReference, where: str, find: FindItem) -> Item:
    text = find(reference.id)
    if text is not None:
        return _decoded(Raw(text), where)
    if reference.id.startswith(_REASONING_ID):
        return reference
    message = f"{where} refers to {reference.id[:_MAX_SHOWN]}, and this server does not have it: send the item itself"
    raise errors.invalid(f"{message} (clients do with `store: false`)", f"{where}.id", "item_not_found")


def text_of(content: Content, where: str) -> str:
    """A content as one string; parts follow each other without a separator.

    Raises:
        ServiceError: 400, a part is not text.
    """
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        if isinstance(part, InputText | GivenOutputText):
            texts.append(part.text)
        elif isinstance(part, Refusal):
            texts.append(part.refusal)
        else:
            kind = type(part).__struct_config__.tag
            param = f"{where}[{index}]"
            raise errors.invalid(f"{param} is of type {kind}: send text", f"{param}.type", "unsupported_parameter")
    return "".join(texts)


def _decoded(item: Raw, where: str) -> Item:
    kind = raw_json.decoded(_KIND, item, where)
    name = kind.type
    if name is None:
        name = "item_reference" if kind.role is None and kind.id is not None else "message"
    decoder = _DECODERS.get(name)
    if decoder is None:
        known = ", ".join(_DECODERS)
        message = f"{where} is of type {name[:_MAX_SHOWN]}: leave it out, or send one of {known}"
        raise errors.invalid(message, f"{where}.type", "unsupported_parameter")
    read: Item = raw_json.decoded(decoder, item, where)
    return read
