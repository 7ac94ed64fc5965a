"""Tool calls fit their schemas, are read back by the server's parser, and differ between training and test."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from infra.miniature import invented, tool_calls
from infra.miniature.conversation import Encoder, Example
from infra.miniature.toolbox import TOOLS
from qwonnx.runtime.text.answer_events import ToolCall, with_whole_calls
from qwonnx.runtime.text.output_parser import OutputParser

pytestmark = pytest.mark.fast

TYPES: dict[str, Any] = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list}


def training(count: int) -> list[Example]:
    random = np.random.default_rng(3)
    return [tool_calls.training_example(random) for _ in range(count)]


def calls_of(example: Example) -> list[dict[str, Any]]:
    return [call["function"] for message in example.messages for call in message.get("tool_calls", ())]


def test_arguments_have_the_types_of_the_schemas_which_are_of_every_type() -> None:
    seen = set()
    for example in training(200):
        schemas = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in example.tools}
        for call in calls_of(example):
            assert call["arguments"].keys() == schemas[call["name"]].keys()
            for name, value in call["arguments"].items():
                schema = schemas[call["name"]][name]
                assert type(value) is TYPES[schema["type"]]
                assert value in schema.get("enum", [value])
                seen.add(schema["type"])
    assert seen == set(TYPES)


def test_some_requests_need_two_calls_and_some_conversations_have_several_requests() -> None:
    examples = training(100)
    assert any(len(message.get("tool_calls", ())) == 2 for example in examples for message in example.messages)
    assert {sum(message["role"] == "user" for message in example.messages) for example in examples} == {1, 2, 3, 4}


def test_the_servers_parser_reads_the_calls_that_are_taught(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer)
    for example in list(tool_calls.held_out(40, 1))[::2]:
        answer = encoder.render(example).rpartition("</think>")[2].partition("<|im_end|>")[0]
        parser = OutputParser(False, list(example.tools))
        events = with_whole_calls([*parser.push(answer), *parser.finish()])
        found = [(event.name, json.loads(event.arguments_json)) for event in events if isinstance(event, ToolCall)]
        assert found == [(call["name"], call["arguments"]) for call in calls_of(example)]


def test_answers_say_what_the_responses_say() -> None:
    for example in training(50):
        for message, following in zip(example.messages, example.messages[1:], strict=False):
            if message["role"] == "tool" and following["role"] == "assistant":
                assert all(str(value) in following["content"] for value in json.loads(message["content"]).values())


def test_held_out_phrasings_and_names_are_not_in_training() -> None:
    for tool in TOOLS:
        assert not set(tool.held_out) & set(tool.phrasings())
    words = {
        word.strip(".,?:")
        for example in training(500)
        for message in example.messages
        if message["role"] == "user"
        for word in message["content"].split()
    }
    random = np.random.default_rng(0)
    assert not words & {invented.name(random, invented.HELD_OUT) for _ in range(2000)}


@pytest.mark.parametrize("thinking", [False, True])
def test_the_same_seed_gives_the_same_suite(thinking: bool) -> None:
    first, second = (list(tool_calls.held_out(4, 7, thinking=thinking)) for _ in range(2))
    assert first == second
    assert first != list(tool_calls.held_out(4, 8, thinking=thinking))
