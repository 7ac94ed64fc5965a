"""A neutral request: the values that reach the sampler, the template and the guide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.errors import InvalidRequestError, TemplateError
from qwonnx.runtime.model import files as model_files
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.params import SamplingParams
from tests.handlers.serving import chat
from tests.runtime import counting_model

pytestmark = pytest.mark.fast

TEMPLATE = """\
{{ messages | tojson }}|{{ tools | tojson }}|{{ 'unset' if enable_thinking is undefined else enable_thinking }}
{{- '<think>\n' if enable_thinking is undefined or enable_thinking else '' }}"""
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weigh"}}
MESSAGES: list[Any] = [*chat("Hi")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> model_files.ModelFiles:
    folder = tmp_path_factory.mktemp("model") / "artifact"
    return model_files.load(open_artifact(counting_model.make(folder, chat_template=TEMPLATE).folder))


def test_what_is_not_said_is_the_checkpoints_recommendation() -> None:
    recommended = SamplingParams(temperature=0.7, top_k=20, stop_token_ids=(5,))
    assert ChatRequest([]).params(recommended) == recommended
    changed = ChatRequest([], sampling={"temperature": 0, "max_tokens": None}).params(recommended)
    assert changed == SamplingParams(temperature=0, top_k=20, stop_token_ids=(5,))


def test_a_value_out_of_range_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        ChatRequest([], sampling={"top_p": 0}).params(SamplingParams())
    assert refusal.value.param == "top_p"


@pytest.mark.parametrize(("thinking", "written"), [(None, "unset"), (True, "True"), (False, "False")])
def test_the_template_gets_messages_tools_and_the_switch(
    model: model_files.ModelFiles, thinking: bool | None, written: str
) -> None:
    prompt = ChatRequest(MESSAGES, [TOOL], thinking=thinking).render(model)
    messages, tools, switch = prompt.text.split("|")
    assert '"content": "Hi"' in messages
    assert '"name": "weigh"' in tools
    assert switch.startswith(written)
    assert prompt.thinking_open is (thinking is not False)
    assert prompt.tools == [TOOL]
    assert model.tokenizer.decode(prompt.token_ids, skip_special_tokens=False) == prompt.text


def test_no_tools_are_none_for_the_template(model: model_files.ModelFiles) -> None:
    assert "|null|" in ChatRequest(MESSAGES).render(model).text


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    model = model_files.load(open_artifact(counting_model.make(tmp_path / "artifact", chat_template=None).folder))
    with pytest.raises(TemplateError, match="no chat template"):
        ChatRequest(MESSAGES).render(model)


@pytest.mark.parametrize("thinking", [True, False])
def test_a_guide_holds_after_the_thoughts_that_the_prompt_opens(model: model_files.ModelFiles, thinking: bool) -> None:
    request = ChatRequest(MESSAGES, guide=lambda: Guide.regex("a+", "form"), thinking=thinking)
    guide = request.guide_of(request.render(model))
    assert guide is not None
    assert (guide.source, guide.param, guide.after_thinking) == ("a+", "form", thinking)


def test_no_guide_is_none_and_a_refused_one_is_refused_when_it_is_asked_for(model: model_files.ModelFiles) -> None:
    prompt = ChatRequest(MESSAGES).render(model)
    assert ChatRequest(MESSAGES).guide_of(prompt) is None
    assert ChatRequest(MESSAGES, guide=lambda: None).guide_of(prompt) is None
    refused = ChatRequest(MESSAGES, guide=lambda: Guide.choice([], "form"))
    assert refused.render(model) == prompt, "a conversation that the template refuses is said first"
    with pytest.raises(InvalidRequestError, match="form is empty"):
        refused.guide_of(prompt)
