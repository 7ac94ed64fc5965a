"""Baking by its functions: which files are prompts, their tokens, and chats that find them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qwonnx.handlers.chat.system_prompt import parse_prompt
from qwonnx.handlers.openai import chat_request, engine_request
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.baking import bake
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import InvalidRequestError, SessionError, TemplateError
from qwonnx.runtime.model import files as model_files
from qwonnx.runtime.settings import RuntimeSettings
from qwonnx.runtime.text.chat_prompt import SystemPrompt, system_beginning
from tests.checkpoints.tiny import chat_template
from tests.runtime import counting_model
from tests.runtime.counting_model import FAILING_TEXT
from tests.runtime.engine.engine_driver import GREEDY, Received, drive

SYSTEM = {"role": "system", "content": "You are a box of many words, and of numbers from 1 to 9."}
TOOL = {
    "type": "function",
    "function": {
        "name": "weigh",
        "description": "Weighs a thing.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}, "digits": {"default": 1.50}}},
    },
}
SETTINGS = RuntimeSettings(num_threads=1, max_num_batched_tokens=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artifact with the template of Qwen 3.5."""
    return counting_model.make(tmp_path / "artifact", chat_template=chat_template()).folder


def prompt(*messages: Any, **fields: Any) -> SystemPrompt:
    return parse_prompt(json.dumps({"messages": messages, **fields}))


CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "system": ([SYSTEM], []),
    "developer": ([SYSTEM | {"role": "developer"}], []),
    "tools": ([], [TOOL]),
    "both": ([SYSTEM], [TOOL]),
    "parts": ([SYSTEM | {"content": [{"type": "text", "text": "One, "}, {"type": "text", "text": "two."}]}], [TOOL]),
    "end of turn inside": ([SYSTEM | {"content": "Never say <|im_end|> at all."}], []),
}


@pytest.mark.parametrize("thinking", [True, False, None])
@pytest.mark.parametrize("case", CASES)
def test_every_chat_begins_with_it_and_a_baked_one_is_found(folder: Path, case: str, thinking: bool | None) -> None:
    messages, tools = CASES[case]
    fields: dict[str, Any] = {"tools": tools} if tools else {}
    (baked,) = bake(folder, [prompt(*messages, **fields)], SETTINGS)
    body = {"model": "m", "messages": [*messages, {"role": "user", "content": "How much is it?"}], **fields}
    if thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": thinking}
    with Engine.open(folder, RuntimeSettings(num_threads=1, max_model_len=2048)) as engine:
        chat = engine_request.neutral(chat_request.parse(json.dumps(body).encode())).render(engine)
        engine.submit(chat.token_ids, GREEDY, received := Received(), snapshot_at=chat.snapshot_at)
        drive(engine)
        text = engine.tokenizer.decode(chat.token_ids[: baked.num_tokens], skip_special_tokens=False)
    assert received.outputs[-1].num_cached_tokens == baked.num_tokens
    assert text.endswith("<|im_end|>")
    assert chat.text.removeprefix(text).startswith("\n<|im_start|>user")


def test_it_is_computed_once_with_progress_and_lies_where_its_tokens_say(folder: Path) -> None:
    progress: list[tuple[int, int]] = []
    one, other = prompt(SYSTEM), prompt(SYSTEM, tools=[TOOL])
    baked = bake(folder, [one, other, one], SETTINGS, on_tokens=lambda *report: progress.append(report))
    assert [prefix.is_new for prefix in baked] == [True, True, True]
    assert baked[0] == baked[2]
    total = baked[0].num_tokens + baked[1].num_tokens
    assert progress[0] == (0, total)
    assert progress[-1] == (total, total)
    assert progress == sorted(progress)
    contents = {prefix.path: prefix.path.read_bytes() for prefix in baked}
    assert {path: len(data) for path, data in contents.items()} == {each.path: each.num_bytes for each in baked}
    assert set(contents) == set((folder / "prefixes").iterdir())
    again = bake(folder, [other], SETTINGS, on_tokens=lambda *report: pytest.fail("nothing is to be computed"))
    assert [prefix.is_new for prefix in again] == [False]
    shutil.rmtree(folder / "prefixes")
    bake(folder, [other, one], SETTINGS)
    assert {path: path.read_bytes() for path in contents} == contents


def test_a_damaged_one_is_computed_again(folder: Path) -> None:
    (baked,) = bake(folder, [prompt(SYSTEM)], SETTINGS)
    data = baked.path.read_bytes()
    baked.path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert bake(folder, [prompt(SYSTEM)], SETTINGS)[0].is_new
    assert baked.path.read_bytes() == data


def test_a_prompt_beyond_the_default_length_is_baked_and_one_beyond_the_models_is_refused(folder: Path) -> None:
    long = SYSTEM | {"content": "x" * 4000}
    (baked,) = bake(folder, [prompt(long)], SETTINGS)
    assert baked.num_tokens > 4000
    with pytest.raises(InvalidRequestError, match="at most 4094 fit"):
        bake(folder, [prompt(SYSTEM | {"content": "x" * 4200})], SETTINGS)
    assert len(list((folder / "prefixes").iterdir())) == 1


def test_a_model_that_fails_leaves_nothing(folder: Path) -> None:
    with pytest.raises(SessionError, match="the model failed"):
        bake(folder, [prompt(SYSTEM | {"content": FAILING_TEXT})], SETTINGS)
    assert not (folder / "prefixes").exists()


def test_a_template_that_writes_nothing_first_or_varies_it_is_refused(tmp_path: Path) -> None:
    def template(text: str) -> model_files.ModelFiles:
        return model_files.load(
            open_artifact(counting_model.make(tmp_path / str(len(text)), chat_template=text).folder)
        )

    nothing = template("{{ messages[-1].content }}<|im_end|>")
    varying = template("{{ enable_thinking }}<|im_end|>{{ messages[-1].content }}<|im_end|>")
    for model in (nothing, varying):
        with pytest.raises(TemplateError, match="nothing comes before"):
            system_beginning(model, [SYSTEM], [])
    with pytest.raises(TemplateError, match="nothing comes before"):
        system_beginning(template(chat_template()), [], [])


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (b"\xff", "not valid JSON"),
        ("[]", "not an object with a list"),
        ('{"messages": "text"}', "not an object with a list"),
        ('{"messages": [], "temperature": 0}', "the prompt has temperature"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}', r"messages\[0\] has the role user"),
        ('{"messages": [{"role": "system"}]}', "content is missing"),
        ('{"messages": [{"role": "system", "content": "a", "mood": 1}]}', r"unknown parameter messages\[0\]\.mood"),
        ('{"tools": [{"type": "function", "function": {"name": "no name"}}]}', r"tools\[0\]"),
    ],
)
def test_what_is_no_prompt_is_refused_by_the_rules_of_a_request(document: str | bytes, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        parse_prompt(document)


def test_nothing_to_bake_opens_no_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bake(folder, [prompt(SYSTEM)], SETTINGS)
    monkeypatch.setattr(Engine, "open", lambda *arguments: pytest.fail("there is nothing to compute"))
    assert bake(folder, [], SETTINGS) == []
    assert not bake(folder, [prompt(SYSTEM)], SETTINGS)[0].is_new
