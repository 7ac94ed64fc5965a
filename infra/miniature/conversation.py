"""Examples: conversations with known answers, and their token ids with a mask of the tokens to learn.

The chat template renders an example exactly as a server renders a request. The model learns the assistant's text after
the part that a server writes for it (`<think>` and a newline, or an empty thought); all else is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from qwonnx.runtime.text.chat_template import ChatTemplate
from tests.checkpoints import chat_template

Json = dict[str, Any]

_TURN = re.compile(r"(<\|im_start\|>assistant\n(?:<think>\n(?:\n</think>\n\n)?)?)(.*?<\|im_end\|>)", re.DOTALL)
_CALL = re.compile(r"<tool_call>\n<function=([^>\n]+)>\n(.*?)</function>\n</tool_call>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n(.*?)\n</parameter>\n", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation that ends with the right answer.

    Attributes:
        task: glossary, tools, pictures or retrieval.
        messages: OpenAI's form; the last one is the assistant's. Pictures stand as items `{"type": "image"}`.
        tools: OpenAI's form.
        pictures: uint8 [height, width, 3], sides multiples of 32, in the order of their items.
        thinking: whether the assistant thinks before it answers.
        language: of the answer, by its English name, if the task is about languages.
    """

    task: str
    messages: tuple[Json, ...]
    tools: tuple[Json, ...] = ()
    pictures: tuple[np.ndarray, ...] = ()
    thinking: bool = False
    language: str | None = None

    def is_right(self, answer: str) -> bool:
        """Whether the text of an answer, with or without its thought, is the expected one.

        Tool calls are right if their number, order, functions and written arguments are equal; other answers if they
        are equal except for surrounding white space.
        """
        expected = self.messages[-1]
        answer = answer.rpartition("</think>")[2].replace("<|im_end|>", "").strip()
        calls = [call["function"] for call in expected.get("tool_calls", ())]
        if not calls:
            return bool(answer == expected["content"].strip())
        rest = _CALL.sub("", answer).strip()
        found = [(name, dict(_PARAMETER.findall(body))) for name, body in _CALL.findall(answer)]
        wanted = [(call["name"], {key: written(value) for key, value in call["arguments"].items()}) for call in calls]
        return rest == expected.get("content", "").strip() and found == wanted


def written(value: Any) -> str:
    """An argument as the chat template of Qwen 3.5 writes it into a call."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list) else str(value)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as tokens.

    Attributes:
        ids: int32 [T].
        learnt: bool [T]; true for tokens to predict.
        pictures: as in Example.
    """

    ids: np.ndarray
    learnt: np.ndarray
    pictures: tuple[np.ndarray, ...]


class Encoder:
    """Renders and tokenises examples."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(chat_template())
        # Most pieces repeat: names, the frame of a turn, filler sentences.
        self.tokens = lru_cache(maxsize=1 << 16)(self._tokens)

    def render(self, example: Example) -> str:
        """The whole conversation as text; each picture is one `<|image_pad|>`."""
        return self._template.render(
            list(example.messages), tools=list(example.tools) or None, add_generation_prompt=False
        )

    def encode(self, example: Example) -> Encoded:
        ids: list[int] = []
        learnt: list[bool] = []
        pictures = iter(example.pictures)
        for text, is_learnt in turns(self.render(example)):
            pieces = text.split("<|image_pad|>")
            for number, piece in enumerate(pieces):
                if number:
                    height, width, _ = next(pictures).shape
                    piece = "<|image_pad|>" * (height * width // 1024) + piece
                part = self.tokens(piece)
                ids += part
                learnt += [is_learnt] * len(part)
        assert next(pictures, None) is None, "a picture has no place in the conversation"
        return Encoded(np.array(ids, np.int32), np.array(learnt, bool), example.pictures)

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text).ids)


def turns(text: str) -> Iterator[tuple[str, bool]]:
    """The pieces of a rendered conversation, and for each whether the model learns it.

    Pieces end at special tokens or newlines before words. Tokens also end there, so encoding the pieces one by one
    gives the tokens of the whole.
    """
    position = 0
    for turn in _TURN.finditer(text):
        yield text[position : turn.start(2)], False
        yield turn[2], True
        position = turn.end()
    yield text[position:], False


def words_of(items: Sequence[str]) -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
