"""LLM: answers as over HTTP, streams, batches, refusals, and what an interrupted or closed one leaves behind."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qwonnx import LLM, Answer, AnswerError
from qwonnx.handlers.library.progress import ProgressBar
from qwonnx.runtime.errors import EngineClosedError, InvalidRequestError, SettingsError
from qwonnx.runtime.text.answer_events import ReasoningDelta
from tests.handlers.cli.commands import FAST
from tests.handlers.serving import MODEL, Served, chat, until
from tests.runtime import counting_model

SETTINGS: dict[str, Any] = {"num_threads": 1, "max_num_seqs": 4, "max_model_len": 512, "spin": False}
THOUGHTS = "<think>\nHm, so.\n</think>\n\n"
CALLS = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nBonn\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    "</function>\n</tool_call>"
)


@pytest.fixture(scope="module")
def llm(counting_folder: Path) -> Iterator[LLM]:
    with LLM(counting_folder, **SETTINGS) as made:
        yield made


def scripted(folder: Path, script: str) -> LLM:
    return LLM(counting_model.make(folder, script=script).folder, **SETTINGS)


def weather(city: str, days: int = 1) -> str:
    """The weather of a city."""
    return f"{city}: rain for {days} days"


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 7, "top_k": 40}, {"logit_bias": {106: 30}}])
def test_an_answer_is_that_of_the_server(llm: LLM, served: Served, sampling: dict[str, Any]) -> None:
    messages = chat("Count with me")
    answer = llm.chat(messages, max_tokens=24, **sampling)
    with served.http() as client:
        body = {"model": MODEL, "messages": messages, "max_tokens": 24, **sampling}
        said = client.post("/v1/chat/completions", json=body).json()
    (choice,) = said["choices"]
    assert (answer, answer.finish_reason) == (choice["message"]["content"], choice["finish_reason"])
    assert answer.usage.num_prompt_tokens == said["usage"]["prompt_tokens"]
    assert answer.usage.num_generated_tokens == said["usage"]["completion_tokens"] == 24


def test_a_stream_is_the_same_answer_in_pieces(llm: LLM) -> None:
    whole = llm.chat("Count", max_tokens=24)
    stream = llm.chat("Count", max_tokens=24, stream=True)
    pieces = list(stream)
    assert len(pieces) > 10
    assert "".join(pieces) == stream.answer == whole
    assert stream.answer.usage.num_generated_tokens == 24
    assert llm.chat("Count", max_tokens=24, stream=True).answer == whole  # without a look at the pieces


def test_a_stream_that_is_left_ends_its_generation(llm: LLM) -> None:
    with llm.chat("Count", ignore_eos=True, stream=True) as stream:
        next(iter(stream))
        assert llm.engine.num_live_requests == 1
    until(lambda: llm.engine.num_live_requests == 0)
    with pytest.raises(AnswerError, match="has not ended"):
        _ = stream.answer
    forgotten = llm.chat("Count", ignore_eos=True, stream=True)
    next(iter(forgotten))
    del forgotten
    until(lambda: llm.engine.num_live_requests == 0)


def test_many_texts_are_answered_together_in_their_order(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [f"text {number}" for number in range(11)]
    answers = llm.generate(prompts, max_tokens=8)
    assert capsys.readouterr().err == ""  # there is no terminal
    assert answers == [llm.generate(prompt, max_tokens=8) for prompt in prompts]
    tokenizer = llm.engine.tokenizer
    model = counting_model.CountingModel(llm.engine.artifact.folder, tokenizer, 1, None)
    predicted = tokenizer.decode(model.answer(tokenizer.encode(prompts[3]), 8))
    assert str(answers[3]) == predicted
    assert llm.generate([]) == []
    questions = llm.generate(["a", "b"], chat=True, system="Count.", max_tokens=4)
    assert questions == [llm.chat(text, system="Count.", max_tokens=4) for text in "ab"]


def test_a_bar_shows_how_far_a_batch_is_where_it_is_wanted(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b", "c"], max_tokens=2, progress=True)
    assert "3 of 3 answers" in capsys.readouterr().err
    with ProgressBar(None, stream := io.StringIO()) as bar:
        bar.show("x", 1, 2)
    assert stream.getvalue() == ""


def test_reasoning_is_apart_from_the_text(tmp_path: Path) -> None:
    with scripted(tmp_path, THOUGHTS + "Yes.") as llm:
        answer = llm.chat("Is it?", logprobs=2)
        assert (answer, answer.reasoning, answer.finish_reason) == ("Yes.", "Hm, so.", "stop")
        assert answer.usage.num_reasoning_tokens > 3
        assert answer.logprobs is not None
        assert "".join(each.token for each in answer.logprobs).strip() == "Yes."
        assert len(answer.logprobs[0].top) == 2
        assert answer.message == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm, so."}
        stream = llm.chat("Is it?", stream=True)
        assert "".join(part.text for part in stream.parts() if isinstance(part, ReasoningDelta)).strip() == "Hm, so."
        assert stream.answer == "Yes."


def test_python_functions_are_tools_and_run(tmp_path: Path) -> None:
    with scripted(tmp_path, CALLS) as llm:
        answer = llm.chat("Weather?", tools=[weather])
        (call,) = answer.tool_calls
        assert (answer, answer.finish_reason) == ("", "tool_calls")
        assert (call.name, call.arguments, call.run()) == (
            "weather",
            {"city": "Bonn", "days": 2},
            "Bonn: rain for 2 days",
        )
        assert answer.parsed is None
        plain = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
        (other,) = llm.chat("Weather?", tools=[plain]).tool_calls
        with pytest.raises(AnswerError, match="was not given as a Python function"):
            other.run()
        conversation = ["Weather?", answer, call.result({"rain": True})]
        with pytest.raises(InvalidRequestError, match=r"messages\[0\]"):
            llm.chat(conversation)  # type: ignore[arg-type]
        followed = llm.chat([{"role": "user", "content": "Weather?"}, answer, call.result({"rain": True})])
        assert followed.usage.num_prompt_tokens > answer.usage.num_prompt_tokens


@dataclass
class City:
    name: str
    inhabitants: int


class Place(msgspec.Struct):
    name: str
    inhabitants: int


@pytest.mark.parametrize("kind", [City, Place, "pydantic"])
def test_an_answer_by_a_class_is_parsed_to_its_instance(tmp_path: Path, kind: Any) -> None:
    if kind == "pydantic":
        pydantic = pytest.importorskip("pydantic")
        kind = pydantic.create_model("Town", name=(str, ...), inhabitants=(int, ...))
    with scripted(tmp_path, '{"name": "Bonn", "inhabitants": 330000}') as llm:
        answer = llm.chat("Which?", schema=kind)
        assert answer.parsed == kind(name="Bonn", inhabitants=330_000)
        assert isinstance(answer.parsed, kind)
        document = {"type": "object", "properties": {"name": {"type": "string"}}}
        assert llm.chat("Which?", schema=document).parsed == {"name": "Bonn", "inhabitants": 330_000}
        cut = llm.chat("Which?", schema=kind, max_tokens=3)
        with pytest.raises(AnswerError, match="cut off after 3 tokens"):
            _ = cut.parsed
        assert llm.chat("Which?").parsed is None


def test_an_answer_is_a_string() -> None:
    answer = Answer("Bonn", finish_reason="length")
    assert answer + "!" == "Bonn!"
    assert (answer, repr(answer), f"{answer:>6}", answer.upper()) == ("Bonn", "'Bonn'", "  Bonn", "BONN")
    found: dict[str, int] = {answer: 1}
    assert found["Bonn"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1}, "no sampling parameter 'temprature': did you mean temperature?"),
        ({"temperature": 3}, "temperature is invalid"),
        ({"top_p": 0}, "top_p is 0"),
        ({"logit_bias": {"x": 1}}, "logit_bias is invalid"),
        ({"stop": ["x"] * 17}, "17 stop strings"),
        ({"schema": 5}, "schema is 5, which has no JSON schema"),
        ({"schema": {"type": 5}}, "schema"),
        ({"schema": City, "regex": "a"}, "regex contradicts schema"),
        ({"tools": [5]}, r"tools\[0\] is int"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, r"tools\[0\].function.name"),
        ({"tools": [weather, weather]}, "two tools are named weather"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tool_choice": "rain", "tools": [weather]}, "tool_choice is 'rain'"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"thinking_budget": 0}, "thinking_budget is 0"),
        ({"adapter": "none"}, "there is no adapter 'none'"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_in_one_line(llm: LLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as refusal:
        llm.chat("Hi", **options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ([{"role": "robot", "content": "x"}], r"messages\[0\].role"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"messages\[0\].content\[0\].type"),
        ([{"role": "user", "mood": "gay"}], r"messages\[0\].mood"),
    ],
)
def test_messages_are_checked(llm: LLM, messages: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        llm.chat(messages)
    with pytest.raises(InvalidRequestError, match="system contradicts"):
        llm.chat([{"role": "system", "content": "a"}, *chat()], system="b")


def test_a_prompt_of_many_that_is_refused_is_named(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match=r"prompts\[1\]: the prompt has \d+ tokens"):
        llm.generate(["a", "b" * 2000], max_tokens=500)
    until(lambda: llm.engine.num_live_requests == 0)


def test_embeddings_are_refused_with_the_reason(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="has no embeddings: use an embedding model"):
        llm.embeddings("text")


def test_settings_are_checked_by_name_and_may_be_texts(counting_folder: Path) -> None:
    with LLM(counting_folder, prefix_cache_bytes="1 MiB", **SETTINGS) as llm:
        assert llm.engine.settings.prefix_cache_bytes == 1 << 20
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"threads": 1}, "no setting 'threads'"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
    )
    for given, message in wrong:
        with pytest.raises(SettingsError, match=message):
            LLM(counting_folder, **given)
    with pytest.raises(SettingsError, match="PREFIX_CACHE_BYTES"):
        LLM(counting_folder, prefix_cache_bytes="much")


def test_it_says_what_it_is_and_whether_it_is_closed(counting_folder: Path) -> None:
    llm = LLM(counting_folder, **SETTINGS)
    assert repr(llm).startswith(f"LLM({str(counting_folder)!r}, model='counting-model', weights=")
    assert "max_model_len=512" in repr(llm)
    threads = threading.active_count()
    llm.close()
    llm.close()
    assert repr(llm).endswith(", closed)")
    assert threading.active_count() < threads
    with pytest.raises(EngineClosedError, match="make a new LLM"):
        llm.chat("Hi")


def test_it_answers_several_threads(llm: LLM) -> None:
    expected = {text: llm.chat(text, max_tokens=6) for text in "abc"}
    found: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda text: found.update({text: llm.chat(text, max_tokens=6)}), args=(text,))
        for text in expected
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


_INTERRUPTED = """
import sys
from qwonnx import LLM
llm = LLM(sys.argv[1], num_threads=1, max_model_len=4096, spin=False)
try:
    print("ready", flush=True)
    llm.generate(["a", "b"], ignore_eos=True) if sys.argv[2] == "batch" else llm.chat("Hi", ignore_eos=True)
except KeyboardInterrupt:
    import time
    until = time.monotonic() + 5
    while llm.engine.num_live_requests and time.monotonic() < until:
        time.sleep(0.01)
    print("live:", llm.engine.num_live_requests, "next:", len(llm.chat("Hi", max_tokens=3)) > 0)
"""


@pytest.mark.parametrize("kind", ["one", "batch"])
def test_ctrl_c_ends_the_answer_and_the_model_goes_on(counting_folder: Path, kind: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED, str(counting_folder), kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **FAST},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "live: 0 next: True\n"), errors


_NOT_CLOSED = """
import sys
from qwonnx import LLM
def opened():
    return LLM(sys.argv[1], num_threads=1, max_model_len=512, spin=False)
kept = opened()
print(len(kept.chat("Hi", max_tokens=3)) > 0)
print(len(list(opened().chat("Hi", max_tokens=3, stream=True))) > 0)  # nothing refers to this model but its stream
print(len(opened().generate(["a", "b"], max_tokens=3)))
"""


def test_a_model_that_is_not_closed_closes_itself(counting_folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", _NOT_CLOSED, str(counting_folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **FAST})
    assert (run.returncode, run.stdout, run.stderr) == (0, "True\nTrue\n2\n", "")
