"""Examples become the tokens that a server would see and that a model must write."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

from infra.miniature import (
    glossary,
    pictures,
    retrieval,
    tool_calls,
)
from infra.miniature.conversation import Encoder, Example
from qwonnx.runtime.text.chat_template import ChatTemplate
from tests.checkpoints import chat_template


def examples() -> list[Example]:
    random = np.random.default_rng(5)
    return [
        *(tool_calls.training_example(random) for _ in range(6)),
        *(pictures.training_example(random) for _ in range(6)),
        *(glossary.training_example(glossary.facts()[i * 400 : i * 400 + 1], random) for i in range(8)),
        retrieval.training_example(random, len, 600),
        next(glossary.held_out(1, 0, thinking=True)),
    ]


def test_a_conversation_in_pieces_has_the_tokens_of_the_whole(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer)
    for example in examples():
        expanded = encoder.render(example).replace("<|image_pad|>", "<|image_pad|>" * 16)
        assert encoder.encode(example).ids.tolist() == tokenizer.encode(expanded).ids


def test_what_is_learnt_is_what_a_server_leaves_to_the_model(tokenizer: Tokenizer) -> None:
    encoder, template = Encoder(tokenizer), ChatTemplate(chat_template())
    for example in examples():
        prompt = template.render(
            list(example.messages[:-1]), tools=list(example.tools) or None, enable_thinking=example.thinking
        )
        rest = encoder.render(example).removeprefix(prompt)
        encoded = encoder.encode(example)
        size = len(tokenizer.encode(rest.removesuffix("\n")).ids)
        assert encoded.learnt[-size - 1 : -1].all()  # the last token is the newline after the turn
        assert not encoded.learnt[-1]
        assert not encoded.learnt[-size - 2]


def test_an_answer_is_right_with_or_without_its_thought() -> None:
    example = next(glossary.held_out(1, 0))
    name = example.messages[-1]["content"]
    assert example.is_right(name)
    assert example.is_right(f"I think so.\n</think>\n\n{name}<|im_end|>")
    assert not example.is_right(name + "s")
    assert not example.is_right("")


@pytest.mark.parametrize("thinking", [False, True])
def test_a_call_is_right_if_its_function_and_arguments_are(tokenizer: Tokenizer, thinking: bool) -> None:
    encoder = Encoder(tokenizer)
    for example in list(tool_calls.held_out(20, 0, thinking=thinking))[::2]:
        answer = encoder.render(example).rpartition("<|im_start|>assistant\n")[2]
        assert example.is_right(answer)
        assert not example.is_right(answer.replace("<function=", "<function=x"))
        assert not example.is_right(answer.replace("\n</parameter>", "0\n</parameter>"))
        assert not example.is_right(answer.replace("<tool_call>", "Of course. <tool_call>"))
        assert not example.is_right("")
