"""A neutral request to the parts of its answer, on a real engine: the order of checks, capsules, ends, disconnects."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwonnx.handlers.chat.answer import begin
from qwonnx.handlers.chat.capsule_store import CapsuleStore
from qwonnx.handlers.chat.parts import Begun, End, EndReason, Part
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.text.answer_events import ArgumentsDelta, CallClosed, CallOpened, ContentDelta
from tests.handlers.serving import RUNTIME, chat, paced, until
from tests.runtime import counting_model

pytestmark = pytest.mark.fast

MESSAGES: list[Any] = [*chat("Hi")]
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weigh"}}
CALL = "<tool_call>\n<function=weigh>\n</function>\n</tool_call>"


@pytest.fixture(scope="module")
def engine(counting_folder: Path) -> Iterator[Engine]:
    with Engine.open(counting_folder, RUNTIME) as opened:
        opened.start()
        yield opened


def request(**fields: Any) -> ChatRequest:
    return ChatRequest(**{"messages": MESSAGES, "sampling": {"max_tokens": 5}, **fields})


def run(test: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(test(), 20)

    return asyncio.run(bounded())


def answered(engine: Engine, asked: ChatRequest, **options: Any) -> list[Part]:
    async def test() -> list[Part]:
        async with await begin(engine, asked, **options) as answer:
            return [part async for part in answer.parts]

    parts: list[Part] = run(test)
    return parts


def text_of(parts: list[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, ContentDelta))


def refusal(engine: Engine, asked: ChatRequest, **options: Any) -> ServiceError:
    with pytest.raises(ServiceError) as raised:
        run(lambda: begin(engine, asked, **options))
    assert engine.num_live_requests == 0
    return raised.value


def test_an_answer_is_what_the_model_says_and_ends_with_what_it_cost(engine: Engine, counting_folder: Path) -> None:
    prompt = engine.tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    model = counting_model.CountingModel(counting_folder, engine.tokenizer, 1, None)
    parts = answered(engine, request())
    assert text_of(parts) == engine.tokenizer.decode(model.answer(prompt, 5))
    end = parts[-1]
    assert isinstance(end, End)
    assert end.reason is EndReason.LENGTH
    assert (end.usage.num_prompt_tokens, end.usage.num_generated_tokens) == (len(prompt), 5)


def test_a_guide_of_the_request_is_followed(engine: Engine) -> None:
    sampling = {"temperature": 2, "seed": 1, "max_tokens": 60}
    parts = answered(engine, request(sampling=sampling, guide=lambda: Guide.choice(["yes", "no"])))
    assert text_of(parts) in ("yes", "no")
    assert isinstance(parts[-1], End)
    assert parts[-1].reason is EndReason.STOP


def test_one_call_ends_the_generation_too(tmp_path: Path) -> None:
    script = CALL + "\n" + CALL + " and much more" * 20
    folder = counting_model.make(tmp_path / "artifact", script=script).folder
    with Engine.open(folder, RUNTIME) as engine, paced(engine, 0.001):
        engine.start()
        parts = answered(engine, request(tools=[TOOL], sampling={}, one_call=True))
        assert [type(part) for part in parts] == [Begun, CallOpened, ArgumentsDelta, CallClosed, End]
        until(lambda: engine.num_live_requests == 0)
        assert engine.metrics().generated_tokens < len(engine.tokenizer.encode(script))


def _refused_guide() -> Guide:
    raise AssertionError("asked for its form before it was found out of range")


def test_sampling_is_checked_before_the_conversation_and_the_conversations_length_before_the_form(
    engine: Engine, tmp_path: Path
) -> None:
    refusing = counting_model.make(tmp_path / "artifact", chat_template="{{ raise_exception('No.') }}").folder
    with Engine.open(refusing, RUNTIME) as other:
        assert refusal(other, request(sampling={"top_p": 0}, guide=_refused_guide)).parameter == "top_p"
        told = refusal(other, request(guide=_refused_guide))
        assert (told.kind, told.status, told.parameter, told.message) == (ErrorKind.INVALID, 400, "messages", "No.")
    told = refusal(engine, request(messages=chat("y" * 600), guide=_refused_guide))
    assert (told.parameter, told.code) == ("prompt", "context_length_exceeded")
    parts = answered(engine, request(sampling={"max_tokens": 10**5}))
    assert isinstance(end := parts[-1], End)
    assert (end.reason, end.usage.num_prompt_tokens + end.usage.num_generated_tokens) == (EndReason.LENGTH, 512)


def test_a_forms_own_refusal_is_passed_on(engine: Engine) -> None:
    theirs = ServiceError(ErrorKind.INVALID, 400, "two forms", parameter="theirs")

    def two_forms() -> Guide:
        raise theirs

    assert refusal(engine, request(guide=two_forms)) is theirs


def test_a_full_queue_is_busy_and_a_closed_engine_unavailable(counting_folder: Path) -> None:
    runtime = dataclasses.replace(RUNTIME, max_num_seqs=1, max_queued_requests=1)
    with Engine.open(counting_folder, runtime) as engine, paced(engine):
        engine.start()

        async def test() -> None:
            async with await begin(engine, request(sampling={"max_tokens": 400})) as running:
                await running.begun()
                async with await begin(engine, request()):
                    with pytest.raises(ServiceError) as full:
                        await begin(engine, request())
                assert (full.value.kind, full.value.status, full.value.code) == (ErrorKind.BUSY, 429, "queue_full")

        run(test)
    told = refusal(engine, request())
    assert (told.kind, told.status, told.code) == (ErrorKind.UNAVAILABLE, 503, "server_closing")


def test_a_model_that_fails_is_an_internal_error_whose_reason_only_the_log_has(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ServiceError) as failed:
        answered(engine, request(messages=chat(counting_model.FAILING_TEXT)), request_id="mine")
    assert (failed.value.kind, failed.value.status) == (ErrorKind.INTERNAL, 500)
    assert "request mine failed: ONNX Runtime failed" in caplog.text
    assert "ONNX" not in failed.value.message


def test_an_engine_that_closes_meanwhile_says_so(counting_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Engine.open(counting_folder, RUNTIME) as engine, paced(engine):
        engine.start()

        async def test() -> None:
            async with await begin(engine, request(sampling={})) as answer:
                await anext(answer.parts)
                await asyncio.to_thread(engine.close)
                with pytest.raises(ServiceError) as closing:
                    _ = [part async for part in answer.parts]
                assert (closing.value.status, closing.value.code) == (503, "server_closing")

        run(test)


@pytest.mark.parametrize("num_parts", [0, 1])
def test_leaving_an_answer_ends_its_generation(engine: Engine, num_parts: int) -> None:
    async def test() -> None:
        async with await begin(engine, request(sampling={"max_tokens": 400})) as answer:
            for _ in range(num_parts):
                await anext(answer.parts)
            assert engine.num_live_requests == 1
        assert [part async for part in answer.parts] == [], "its parts are closed with it"

    with paced(engine):
        run(test)
        until(lambda: engine.num_live_requests == 0, 2)


def test_an_answer_ends_as_it_is_at_its_deadline_or_is_refused_if_there_is_nothing_of_it(engine: Engine) -> None:
    async def test(seconds: float) -> list[Part]:
        deadline = asyncio.get_running_loop().time() + seconds
        async with await begin(engine, request(sampling={}), deadline=deadline) as answer:
            return [part async for part in answer.parts]

    with paced(engine):
        parts = run(lambda: test(0.5))
        assert isinstance(parts[-1], End)
        assert parts[-1].reason is EndReason.LENGTH
        assert 0 < len(text_of(parts)) < 100
        with pytest.raises(ServiceError) as late:
            run(lambda: test(0))
        assert (late.value.kind, late.value.status) == (ErrorKind.TIMEOUT, 504)
        until(lambda: engine.num_live_requests == 0, 2)


def test_a_capsule_is_restored_before_the_prompt_is_read_and_written_once_the_answer_is_out(
    counting_folder: Path, tmp_path: Path
) -> None:
    capsules = CapsuleStore(str(tmp_path / "capsules"))
    system: list[Any] = [{"role": "system", "content": "You are a box."}, *MESSAGES]

    def ask(engine: Engine) -> int:
        async def test() -> int:
            async with await begin(engine, request(messages=system), capsules=capsules) as answer:
                parts = [part async for part in answer.parts]
            assert isinstance(parts[-1], End)
            assert answer.saving is not None
            answer.saving()
            return parts[-1].usage.num_cached_tokens

        cached: int = run(test)
        return cached

    for expected in (0, len("You are a box.")):
        with Engine.open(counting_folder, RUNTIME) as engine:
            engine.start()
            assert (ask(engine) > expected) == (expected > 0)
    assert len(list((tmp_path / "capsules").iterdir())) == 2


def test_without_a_store_there_is_nothing_to_write(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> object:
        async with await begin(engine, request()) as answer:
            return answer.saving

    with caplog.at_level(logging.WARNING):
        assert run(test) is None
    until(lambda: engine.num_live_requests == 0, 2)
