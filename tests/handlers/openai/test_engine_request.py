"""OpenAI's request as a neutral one, and the names of parameters in errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwonnx.handlers import errors
from qwonnx.handlers.openai import chat_request, engine_request
from qwonnx.handlers.openai.chat_protocol import ChatCompletionRequest
from qwonnx.runtime.sampling.params import SamplingParams

pytestmark = pytest.mark.fast

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weigh"}}
RECOMMENDED = SamplingParams(temperature=0.6, top_p=0.95, top_k=20, min_p=0.1)


def parsed(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return chat_request.parse(json.dumps(body).encode())


def params(**fields: Any) -> SamplingParams:
    return engine_request.neutral(parsed(**fields)).params(RECOMMENDED)


def test_a_bare_request_is_sampled_as_the_checkpoint_recommends() -> None:
    assert params() == RECOMMENDED
    assert params(temperature=None, stop=None, seed=None) == RECOMMENDED


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"top_k": 3},
        {"top_p": 0.5},
        {"min_p": 0},
        {"presence_penalty": 1},
        {"frequency_penalty": -1},
        {"repetition_penalty": 1.1},
        {"seed": 0},
        {"ignore_eos": True},
        {"max_tokens": 3},
    ],
    ids=str,
)
def test_every_sampling_field_is_passed_on_also_if_it_is_zero(fields: dict[str, Any]) -> None:
    ((name, value),) = fields.items()
    assert getattr(params(**fields), name) == value


def test_fields_of_other_names_or_forms_are_translated() -> None:
    assert params(max_completion_tokens=4).max_tokens == 4
    assert params(stop="a").stop == ("a",)
    assert params(stop=["a", "b"]).stop == ("a", "b")
    assert params(stop_token_ids=[1, 2]).stop_token_ids == (1, 2)
    assert params(logit_bias={"5": -1}).logit_bias == {5: -1}


def test_messages_tools_and_switches_are_translated() -> None:
    neutral = engine_request.neutral(parsed(tools=[TOOL], reasoning_effort="none", parallel_tool_calls=False))
    assert neutral.messages == [{"role": "user", "content": "Hi"}]
    assert (neutral.tools, neutral.thinking, neutral.one_call) == ([TOOL], False, True)
    bare = engine_request.neutral(parsed())
    assert (bare.tools, bare.thinking, bare.one_call) == ([], None, False)
    assert not engine_request.neutral(parsed(parallel_tool_calls=True)).one_call


def test_the_form_of_the_answer_is_found_when_it_is_asked_for() -> None:
    form = engine_request.neutral(parsed(structured_outputs={"regex": "a+"})).guide
    assert form is not None
    found = form()
    assert found is not None
    assert (found.source, found.param) == ("a+", "structured_outputs.regex")
    assert engine_request.neutral(parsed()).guide is None
    tool = {"type": "function", "function": {"name": "f"}}
    nothing = engine_request.neutral(parsed(tools=[tool])).guide
    assert nothing is not None
    assert nothing() is None


@pytest.mark.parametrize(
    ("parameter", "expected"), [("prompt", "messages"), ("temperature", "temperature"), (None, None)]
)
def test_a_parameter_gets_the_name_that_the_client_knows(parameter: str | None, expected: str | None) -> None:
    error = errors.invalid("no", parameter, "code")
    told = engine_request.in_openai_words(error)
    assert (told.message, told.parameter, told.code) == ("no", expected, "code")
