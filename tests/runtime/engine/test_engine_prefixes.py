"""Prompts that begin like earlier ones: fewer tokens are computed, and the answers are the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwonnx.runtime.engine import prefix_reuse as module
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason
from tests.runtime.counting_model import FAILING_TEXT, CountingModel
from tests.runtime.engine.engine_driver import GREEDY, SMALL, Received, drive, opened

pytestmark = pytest.mark.fast

SYSTEM = "you are a box. "


def ask(engine: Engine, model: CountingModel, text: str, *snapshot_at: int) -> Received:
    """Answer a prompt, and check that the answer is the predicted one."""
    prompt, received = model.tokenizer.encode(text), Received()
    engine.submit(prompt, GREEDY, received, snapshot_at=snapshot_at)
    drive(engine)
    assert received.tokens == model.answer(prompt, 12)
    return received


def cached(received: Received) -> int:
    return received.outputs[-1].num_cached_tokens


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_a_prompt_goes_on_where_another_was_kept(counting_model: CountingModel, chunk: int) -> None:
    system = len(counting_model.tokenizer.encode(SYSTEM))
    with opened(counting_model, replace(SMALL, max_num_batched_tokens=chunk)) as engine:
        assert cached(ask(engine, counting_model, SYSTEM + "one", system)) == 0
        assert cached(ask(engine, counting_model, SYSTEM + "two and more", system)) == system
        assert cached(ask(engine, counting_model, SYSTEM[:-2] + "three")) == 0


def test_a_chat_of_many_turns_reads_only_what_is_new(counting_model: CountingModel) -> None:
    text, before = SYSTEM, 0
    with opened(counting_model) as engine:
        for turn in ("a?", "b?", "c?", "d?"):
            text += turn
            end = len(counting_model.tokenizer.encode(text))
            assert cached(ask(engine, counting_model, text + "\n", end)) == before
            before = end


def test_it_is_answered_alike_beside_others_and_from_any_row(counting_model: CountingModel) -> None:
    encode = counting_model.tokenizer.encode
    system = len(encode(SYSTEM))
    with opened(counting_model) as engine:
        ask(engine, counting_model, SYSTEM + "x", system)
        prompts = [encode(SYSTEM + "xyz"), encode("no system"), encode(SYSTEM + "d")]
        received = [Received() for _ in prompts]
        for index, (prompt, receiver) in enumerate(zip(prompts, received, strict=True)):
            engine.submit(prompt, replace(GREEDY, max_tokens=3 + 4 * index), receiver)
            engine.step()
        drive(engine)
    for index, (prompt, receiver) in enumerate(zip(prompts, received, strict=True)):
        assert receiver.tokens == counting_model.answer(prompt, 3 + 4 * index)
        assert cached(receiver) == (system if index != 1 else 0)


def test_long_prompts_are_kept_at_intervals(counting_model: CountingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SNAPSHOT_INTERVAL", 8)
    with opened(counting_model) as engine:
        ask(engine, counting_model, "x" * 20)
        assert cached(ask(engine, counting_model, "x" * 19 + "y")) == 16
        assert cached(ask(engine, counting_model, "x" * 12)) == 8
        assert cached(ask(engine, counting_model, "x" * 8)) == 0


def test_a_request_that_fails_or_is_aborted_holds_nothing(counting_model: CountingModel) -> None:
    encode = counting_model.tokenizer.encode
    with opened(counting_model) as engine:
        ask(engine, counting_model, SYSTEM + "x", len(encode(SYSTEM)))
        failing, aborted = Received(), Received()
        engine.submit(encode(SYSTEM + "abcdefgh" + FAILING_TEXT), GREEDY, failing)
        engine.submit(encode(SYSTEM + "abcdefgh"), GREEDY, aborted, request_id="aborted")
        engine.step()
        engine.step()
        engine.abort("aborted")
        drive(engine)
        assert (failing.reason, aborted.reason) == (FinishReason.ERROR, FinishReason.ABORT)
        assert cached(ask(engine, counting_model, SYSTEM + "y")) == len(encode(SYSTEM))


def test_an_owner_reads_again_what_another_one_sent(counting_model: CountingModel) -> None:
    encode = counting_model.tokenizer.encode
    system = len(encode(SYSTEM))

    def ask_as(owner: str, text: str) -> int:
        prompt, received = encode(SYSTEM + text), Received()
        engine.submit(prompt, GREEDY, received, snapshot_at=[system], owner=owner)
        drive(engine)
        assert received.tokens == counting_model.answer(prompt, 12)
        return cached(received)

    with opened(counting_model) as engine:
        assert [ask_as(owner, "x") for owner in ("a", "b", "a", "b", "")] == [0, 0, system, system, 0]
        assert engine.kept_tokens(encode(SYSTEM), owner="a") == system
        assert engine.kept_tokens(encode(SYSTEM), owner="c") == 0
        assert engine.save_capsule(encode(SYSTEM), owner="c") is None
        data = engine.save_capsule(encode(SYSTEM), owner="a")
        assert data is not None
        assert engine.load_capsule(data, owner="c") == system
        assert [ask_as(owner, "y") for owner in ("c", "d")] == [system, 0]


def test_prompts_of_two_owners_do_not_wait_for_each_other(counting_model: CountingModel) -> None:
    """One that begins alike would wait for the other's chunk, and its time would tell."""
    encode = counting_model.tokenizer.encode

    def steps(other: str) -> int:
        with opened(counting_model, replace(SMALL, max_num_batched_tokens=4)) as engine:
            engine.submit(encode("x" * 24), GREEDY, Received(), snapshot_at=[20], owner="a")
            engine.step()
            engine.submit(encode("x" * 20 + "y" * 4), GREEDY, received := Received(), owner=other)
            for step in range(100):
                if received.tokens:
                    return step
                engine.step()
        raise AssertionError

    assert steps("a") < steps("b")


def test_with_no_memory_for_it_nothing_is_kept_and_no_chunk_is_cut(counting_model: CountingModel) -> None:
    settings = replace(SMALL, prefix_cache_bytes=0, max_num_batched_tokens=64)
    with opened(counting_model, settings) as engine:
        for _ in range(2):
            assert cached(ask(engine, counting_model, SYSTEM + "x", 3)) == 0
        engine.submit(counting_model.tokenizer.encode(SYSTEM), GREEDY, received := Received(), snapshot_at=[3])
        engine.step()
        assert len(received.tokens) == 1


def test_the_oldest_go_where_memory_is_short(counting_model: CountingModel) -> None:
    with opened(counting_model) as engine:
        ask(engine, counting_model, "aaaaaaaa", 4)
        one = engine.prefix_account().used_bytes
    with opened(counting_model, replace(SMALL, prefix_cache_bytes=2 * one)) as engine:
        for letter in "abc":
            ask(engine, counting_model, letter * 8, 4)
        assert engine.prefix_account().used_bytes == 2 * one
        assert [cached(ask(engine, counting_model, letter * 8)) for letter in "cba"] == [4, 4, 0]
