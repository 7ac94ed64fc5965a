"""Rows under a budget of bytes: requests wait or give a row back, without a change in any answer."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest

from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.scheduling.row_budget import RowBudget, settle
from qwonnx.runtime.scheduling.scheduler import HEADROOM
from tests.runtime.counting_model import FAILING_TEXT, CountingModel
from tests.runtime.engine.engine_driver import GREEDY, SMALL, Received, drive, opened

LONG = replace(SMALL, max_model_len=200, max_queued_requests=8)


def _budget(model: CountingModel, *lengths: int) -> int:
    """Bytes of rows of these lengths."""
    with model.open(SMALL) as engine:
        budget: RowBudget = settle(engine.artifact.decoder.states, SMALL, 64)[0]
    return sum(map(budget.bytes_of, lengths))


def _ask(engine: Engine, model: CountingModel, text: str, max_tokens: int) -> tuple[list[int], Received]:
    prompt, received = model.tokenizer.encode(text), Received()
    engine.submit(prompt, SamplingParams(temperature=0, max_tokens=max_tokens), received)
    return model.answer(prompt, max_tokens), received


def test_who_does_not_fit_beside_the_others_waits(counting_model: CountingModel) -> None:
    bytes_of_two = _budget(counting_model, 20 + HEADROOM, 20 + HEADROOM)
    settings = replace(LONG, cache_bytes=bytes_of_two, max_model_len=None)
    with opened(counting_model, settings) as engine:
        asked = [_ask(engine, counting_model, "x" * 20, 3) for _ in range(3)]
        engine.step()
        assert (engine.metrics().num_running, engine.metrics().num_waiting) == (2, 1)
        drive(engine)
        assert engine.metrics().preemptions == 0
    for expected, received in asked:
        assert received.tokens == expected


@pytest.mark.parametrize("prefix_cache_bytes", [0, 1 << 20])
def test_the_last_to_come_gives_its_row_back_and_says_the_same(
    counting_model: CountingModel, prefix_cache_bytes: int
) -> None:
    # Two prompts of 10 and their headroom fit, and then grow to 110 tokens each.
    room = _budget(counting_model, 75, 75)
    settings = replace(LONG, cache_bytes=room, prefix_cache_bytes=prefix_cache_bytes, max_model_len=None)
    with opened(counting_model, settings) as engine:
        asked = [_ask(engine, counting_model, "abcdefghi" + letter, 100) for letter in "xy"]
        running_after_first = None
        for _ in range(1000):
            engine.step()
            assert engine.check() == []
            if asked[0][1].reason is not None and running_after_first is None:
                running_after_first = len(asked[1][1].tokens)
            if not engine.num_live_requests:
                break
        seen = engine.metrics()
    assert seen.preemptions == 1
    assert running_after_first is not None
    assert 0 < running_after_first < 100  # the first continued alone, then the second
    for expected, received in asked:
        assert received.tokens == expected
        assert received.outputs[-1].num_cached_tokens == 0
    assert (seen.prompt_tokens, seen.queue_seconds.num_observations) == (20, 2)  # counted once


def test_an_answer_under_a_guide_goes_on_where_it_gave_its_row_back(counting_model: CountingModel) -> None:
    settings = replace(LONG, cache_bytes=_budget(counting_model, 75, 75), prefix_cache_bytes=0, max_model_len=None)
    params = SamplingParams(temperature=2, seed=1, guide=Guide.regex("([a-z]{3}-[0-9]{2} ){20}"))
    answers = []
    for count in (1, 2):
        with opened(counting_model, settings) as engine:
            received = [Received() for _ in range(count)]
            for one in received:
                engine.submit(engine.tokenizer.encode("abcdefghi"), params, one)
            drive(engine)
            assert engine.metrics().preemptions == count - 1
        answers += received
    assert {answer.text for answer in answers} == {answers[0].text}
    assert re.fullmatch("([a-z]{3}-[0-9]{2} ){20}", answers[0].text)


def test_a_default_length_is_no_longer_than_the_budget(counting_model: CountingModel) -> None:
    with opened(counting_model, replace(LONG, cache_bytes=_budget(counting_model, 30), max_model_len=None)) as engine:
        assert engine.max_model_len == 30
        expected, received = _ask(engine, counting_model, "abc", 27)
        drive(engine)
    assert received.tokens == expected


def test_ended_rows_give_their_memory_to_others(counting_model: CountingModel) -> None:
    room = _budget(counting_model, 150, 20)
    settings = replace(LONG, cache_bytes=room, max_model_len=None, prefix_cache_bytes=0)
    with opened(counting_model, settings) as engine:
        for _ in range(4):
            _ask(engine, counting_model, "ab", 2)
            _ask(engine, counting_model, "x" * 30, 50)
            drive(engine)
            assert engine.row_account().touched_bytes <= room + _budget(counting_model, 150)


def test_two_prompts_that_begin_alike_are_read_once_up_to_where_they_part(counting_model: CountingModel) -> None:
    shared = "a system text of some length. "
    end = len(counting_model.tokenizer.encode(shared))
    with opened(counting_model) as engine:
        received = []
        for text in ("one?", "two?", "three?"):
            prompt = counting_model.tokenizer.encode(shared + text)
            receiver = Received()
            engine.submit(prompt, GREEDY, receiver, snapshot_at=[end])
            received.append((counting_model.answer(prompt, 12), receiver))
        drive(engine)
    assert [receiver.outputs[-1].num_cached_tokens for _, receiver in received] == [0, end, end]
    for expected, receiver in received:
        assert receiver.tokens == expected


def test_who_waits_for_a_beginning_goes_on_without_it_if_its_reader_leaves(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode("a system text of some length. ?")
    with opened(counting_model) as engine:
        engine.submit(prompt, GREEDY, Received(), request_id="reader", snapshot_at=[len(prompt) - 1])
        waiting = Received()
        engine.submit([*prompt, 70], GREEDY, waiting)
        engine.step()
        engine.step()
        engine.abort("reader")
        drive(engine)
    assert waiting.tokens == counting_model.answer([*prompt, 70], 12)
    assert waiting.outputs[-1].num_cached_tokens == 0


def test_a_deadline_ends_what_runs_and_what_waits(counting_model: CountingModel) -> None:
    with opened(counting_model, replace(LONG, max_num_seqs=1)) as engine:
        now = time.monotonic()
        running, waiting, late = Received(), Received(), Received()
        engine.submit([70], replace(GREEDY, max_tokens=100), running, deadline=now + 0.2)
        engine.submit([70], GREEDY, waiting, deadline=now + 0.2)
        engine.submit([70], GREEDY, late, deadline=now + 3600)
        engine.step()
        engine.step()
        assert running.reason is None
        time.sleep(0.2)
        engine.step()
        assert [received.reason for received in (running, waiting)] == [FinishReason.DEADLINE] * 2
        assert running.tokens == counting_model.answer([70], len(running.tokens))
        drive(engine)
    assert late.tokens == counting_model.answer([70], 12)


def test_a_session_that_keeps_failing_is_not_ready_until_it_does_not(counting_model: CountingModel) -> None:
    failing = counting_model.tokenizer.encode(FAILING_TEXT)
    with opened(counting_model) as engine:
        engine.warm_up()
        ready = []
        for prompt in ([70], failing, failing, failing, [70]):
            received = Received()
            engine.submit(prompt, GREEDY, received)
            while received.reason is None:
                time.sleep(0.001)
            ready.append(engine.is_ready)
    assert ready == [True, True, True, False, True]
