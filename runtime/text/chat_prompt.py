"""A conversation as tokens: rendered by the model's chat template, tokenized, with the ends of its turns."""

from __future__ import annotations

from typing import Any, Protocol

from msgspec import Struct

from qwonnx.runtime.errors import TemplateError
from qwonnx.runtime.text.answer_beginning import AnswerBeginning, opens_thinking
from qwonnx.runtime.text.chat_template import ChatTemplate
from qwonnx.runtime.text.output_parser import OutputParser
from qwonnx.runtime.text.template_text import TemplateText, own, plain
from qwonnx.runtime.text.tokenizer import Tokenizer


class ChatModel(Protocol):
    """The parts of a model that render a conversation; an engine and ModelFiles have them."""

    @property
    def chat_template(self) -> ChatTemplate | None: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...


class SystemPrompt(Struct, frozen=True):
    """System messages and tools, in the form that chat templates take."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]


class ChatPrompt(Struct, frozen=True):
    """A rendered conversation.

    text: output of the template.
    token_ids: tokens of the text.
    thinking_open: the prompt ends inside <think>, so the answer begins with reasoning.
    tools: tools that the model may call, in OpenAI's form.
    turn_ends: positions after each turn, ascending.
    """

    text: TemplateText
    token_ids: list[int]
    thinking_open: bool
    tools: list[dict[str, Any]]
    turn_ends: tuple[int, ...]

    @property
    def snapshot_at(self) -> tuple[int, ...]:
        """Positions after which other prompts are likely to differ.

        These are the ends of the first turn (the system's, if it exists) and of the last, where this chat's next turn
        begins.
        """
        return tuple(dict.fromkeys((*self.turn_ends[:1], *self.turn_ends[-1:])))

    def parser(self) -> OutputParser:
        return OutputParser(self.thinking_open, self.tools or None)


def render_chat(
    model: ChatModel,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    variables: dict[str, Any],
) -> ChatPrompt:
    """Apply the model's chat template and tokenize. The time is proportional to the conversation.

    Only what the template writes becomes control: special tokens that the messages, tools or variables spell are text.

    Raises:
        TemplateError: the model has no template, or it refuses the conversation.
    """
    return encode_chat(model, render_text(model, messages, tools, variables), tools)


def render_text(
    model: ChatModel, messages: list[dict[str, Any]], tools: list[dict[str, Any]], variables: dict[str, Any]
) -> TemplateText:
    """The first half of render_chat(): apply the chat template.

    Raises:
        TemplateError: the model has no template, or it refuses the conversation.
    """
    if model.chat_template is None:
        raise TemplateError("the model has no chat template: use a checkpoint that has one")
    return model.chat_template.render(messages, tools=tools or None, **variables)


def encode_chat(
    model: ChatModel,
    text: TemplateText,
    tools: list[dict[str, Any]],
    *,
    at_most: int | None = None,
    allow_special_tokens: bool = False,
    beginning: AnswerBeginning | None = None,
) -> ChatPrompt:
    """The second half of render_chat(): tokenize. The time and the memory are proportional to the text.

    Args:
        model: the model.
        text: output of its template.
        tools: see ChatPrompt.
        at_most: a text that surely has more tokens is refused before the work.
        allow_special_tokens: special tokens count whoever wrote them, so that a message can end its turn.
        beginning: of the answer.

    Raises:
        InvalidRequestError: the text has more tokens than at_most.
    """
    if allow_special_tokens:
        text = own(plain(text))
    thinking_open = opens_thinking(text) if beginning is None else beginning.leaves_open(text)
    if beginning is not None:
        text = beginning.after(text)
        text = own(plain(text)) if allow_special_tokens else text
    encoded = model.tokenizer.encode_chat(text, at_most)
    # Turns end with the same tokens as answers. The text after the last one opens the answer; later renderings change
    # it. No text of the request is an added token, so none ends a turn.
    ends = tuple(place + 1 for place in encoded.added_at if encoded.token_ids[place] in model.eos_token_ids)
    return ChatPrompt(text, encoded.token_ids, thinking_open, tools, ends)


def system_beginning(model: ChatModel, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
    """The first tokens of every chat with these system messages and tools, up to the end of their turn.

    Chats restore this position. The tokens do not depend on the user's text or on whether the model thinks.

    Raises:
        TemplateError: the model has no template, it refuses the messages, or it writes nothing before the user's turn.
    """
    one, other = (
        render_chat(model, [*messages, {"role": "user", "content": text}], tools, {"enable_thinking": thinking})
        for text, thinking in (("A", True), ("B", False))
    )
    pairs = zip(one.token_ids, other.token_ids, strict=False)
    shared = next((position for position, (a, b) in enumerate(pairs) if a != b), 0)
    end = max((end for end in one.turn_ends if end <= shared), default=0)
    if not end:
        raise TemplateError("nothing comes before the user's turn: give a system message or tools")
    return one.token_ids[:end]
