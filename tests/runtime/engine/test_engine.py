"""Answers of the engine on the counting model, whose tokens depend on every state and can be predicted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.errors import (
    InvalidRequestError,
    QueueFullError,
)
from qwonnx.runtime.sampling.params import SamplingParams
from tests.runtime.counting_model import FAILING_TEXT, NAN_TEXT, CountingModel
from tests.runtime.engine.engine_driver import GREEDY, SMALL, TEXT, Received, drive, opened, wait_until

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 64])
def test_a_prompt_in_chunks_of_any_size_is_answered_like_the_whole(counting_model: CountingModel, chunk: int) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    with opened(counting_model, replace(SMALL, max_num_batched_tokens=chunk)) as engine:
        received = Received()
        engine.submit(prompt, GREEDY, received)
        drive(engine)
    assert received.tokens == counting_model.answer(prompt, 12)
    assert received.reason is FinishReason.LENGTH


def test_interleaved_requests_are_answered_as_if_alone(counting_model: CountingModel) -> None:
    prompts = [counting_model.tokenizer.encode(TEXT[i:] + "x" * i) for i in range(5)]
    with opened(counting_model) as engine:
        received = [Received() for _ in prompts]
        for i, (prompt, receiver) in enumerate(zip(prompts, received, strict=True)):
            engine.submit(prompt, replace(GREEDY, max_tokens=4 + 5 * i), receiver)
            engine.step()
        drive(engine)
    for i, (prompt, receiver) in enumerate(zip(prompts, received, strict=True)):
        assert receiver.tokens == counting_model.answer(prompt, 4 + 5 * i)


def test_a_rows_second_sequence_sees_nothing_of_the_first(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    with opened(counting_model, replace(SMALL, max_num_seqs=1)) as engine:
        for _ in range(3):
            received = Received()
            engine.submit(prompt, GREEDY, received)
            drive(engine)
            assert received.tokens == counting_model.answer(prompt, 12)


def test_the_models_end_token_stops_and_is_counted_but_not_shown(ending_model: CountingModel) -> None:
    prompt = ending_model.tokenizer.encode("0123456789")
    with opened(ending_model) as engine:
        received = Received()
        engine.submit(prompt, SamplingParams(temperature=0), received)
        drive(engine)
    assert received.reason is FinishReason.STOP
    assert received.tokens[-1] == ending_model.end_token
    assert len(received.tokens) == 24 - 10 + 1 == received.outputs[-1].num_generated_tokens
    assert received.text == ending_model.tokenizer.decode(received.tokens)
    assert received.outputs[-1].num_prompt_tokens == 10


def test_ignore_eos_goes_on_to_the_length(ending_model: CountingModel) -> None:
    with opened(ending_model) as engine:
        received = Received()
        engine.submit(ending_model.tokenizer.encode("ab"), SamplingParams(temperature=0, ignore_eos=True), received)
        drive(engine)
    assert received.reason is FinishReason.LENGTH
    assert received.outputs[-1].num_generated_tokens == 62  # max_model_len less the prompt


def test_a_stop_token_and_a_stop_string_end_the_answer(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    answer = counting_model.answer(prompt, 12)
    text = counting_model.tokenizer.decode(answer)
    with opened(counting_model) as engine:
        by_token, by_string = Received(), Received()
        engine.submit(prompt, replace(GREEDY, stop_token_ids=(answer[5],)), by_token)
        engine.submit(prompt, replace(GREEDY, stop=(text[4:7],)), by_string)
        drive(engine)
    assert by_token.reason is by_string.reason is FinishReason.STOP
    assert by_token.text == text[: answer.index(answer[5])]
    assert by_string.text == text[: text.index(text[4:7])]


def test_text_held_back_for_a_stop_string_is_given_at_the_end(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    text = counting_model.tokenizer.decode(counting_model.answer(prompt, 12))
    with opened(counting_model) as engine:
        received = Received()
        engine.submit(prompt, replace(GREEDY, stop=(text[-3:] + "!",)), received)
        drive(engine)
    assert received.reason is FinishReason.LENGTH
    assert received.text == text


def test_a_seed_gives_the_same_answer_alone_and_among_others(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    params = SamplingParams(temperature=5, seed=3, max_tokens=10)
    answers = []
    for others in (0, 2):
        with opened(counting_model) as engine:
            received = Received()
            for index in range(others):  # seeded too: the token that makes the graph fail would end all of the step
                engine.submit(prompt[3:], replace(params, seed=10 + index), Received())
            engine.submit(prompt, params, received)
            drive(engine)
            answers.append(received.tokens)
    assert answers[0] == answers[1] != counting_model.answer(prompt, 10)


def test_an_abort_takes_effect_within_one_step_wherever_the_request_is(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    with opened(counting_model, replace(SMALL, max_num_seqs=2)) as engine:
        received = [Received() for _ in range(4)]
        engine.submit(prompt[:2], GREEDY, received[0], request_id="decoding")
        engine.step()
        engine.submit(prompt, GREEDY, received[1], request_id="reading")
        engine.step()
        engine.submit(prompt, GREEDY, received[2], request_id="waiting")
        engine.submit(prompt, GREEDY, received[3], request_id="just submitted")
        engine.abort("waiting")
        engine.step()
        assert received[2].reason is FinishReason.ABORT
        for name, receiver in (("reading", received[1]), ("decoding", received[0]), ("just submitted", received[3])):
            engine.abort(name)
            engine.step()
            assert receiver.reason is FinishReason.ABORT
            assert engine.check() == []
        engine.abort("decoding")  # over already: nothing happens
        assert engine.step() == []


def test_a_failing_step_ends_its_own_requests_with_one_error_and_no_other(counting_model: CountingModel) -> None:
    encode = counting_model.tokenizer.encode
    with opened(counting_model) as engine:
        well, failing, after = Received(), Received(), Received()
        engine.submit(encode(TEXT), GREEDY, well)
        engine.submit(encode(f"12345{FAILING_TEXT}78"), GREEDY, failing)
        drive(engine)
        engine.submit(encode(TEXT), GREEDY, after)
        drive(engine)
    assert failing.reason is FinishReason.ERROR
    error = failing.outputs[-1].error
    assert error is not None
    assert "ONNX Runtime failed to run a step" in error
    assert "\n" not in error
    assert well.tokens == after.tokens == counting_model.answer(encode(TEXT), 12)


def test_a_prompt_that_fails_does_not_take_those_with_it_that_are_read_in_the_same_step(
    counting_model: CountingModel,
) -> None:
    encode = counting_model.tokenizer.encode
    prompts = [encode("ab"), encode(f"a{FAILING_TEXT}"), encode("cd")]
    with opened(counting_model) as engine:
        received = [Received() for _ in prompts]
        for prompt, receiver in zip(prompts, received, strict=True):
            engine.submit(prompt, GREEDY, receiver)
        drive(engine)
        assert (
            engine.metrics().failed_steps == 2
        )  # of both that fit into a step of four tokens, and of the one at fault
    assert [receiver.reason for receiver in received] == [FinishReason.LENGTH, FinishReason.ERROR, FinishReason.LENGTH]
    for index in (0, 2):
        assert received[index].tokens == counting_model.answer(prompts[index], 12)


def test_logits_that_are_no_numbers_end_only_their_own_request(counting_model: CountingModel) -> None:
    encode = counting_model.tokenizer.encode
    with opened(counting_model) as engine:
        well, broken = Received(), Received()
        engine.submit(encode(f"ab{NAN_TEXT}"), GREEDY, broken)
        engine.submit(encode(TEXT), GREEDY, well)
        drive(engine)
    assert broken.reason is FinishReason.ERROR
    assert "not finite" in str(broken.outputs[-1].error)
    assert well.tokens == counting_model.answer(encode(TEXT), 12)


@pytest.mark.parametrize(
    ("prompt", "params", "param", "code"),
    [
        ([], GREEDY, "prompt", None),
        ([5, 10_000], GREEDY, "prompt", None),
        ([5, 270], GREEDY, "prompt", None),  # a row that pads the embedding
        ([-1], GREEDY, "prompt", None),
        ([5] * 64, SamplingParams(), "prompt", "context_length_exceeded"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_at_once(
    counting_model: CountingModel, prompt: list[int], params: SamplingParams, param: str, code: str | None
) -> None:
    with opened(counting_model) as engine:
        with pytest.raises(InvalidRequestError) as caught:
            engine.submit(prompt, params, Received())
        assert (caught.value.param, caught.value.code) == (param, code)
        assert engine.num_live_requests == 0


def test_the_longest_prompt_and_answer_fill_the_cache_exactly(counting_model: CountingModel) -> None:
    with opened(counting_model) as engine:
        long, answer = Received(), Received()
        engine.submit([70] * 63, SamplingParams(temperature=0), long)
        engine.submit([70], SamplingParams(temperature=0, max_tokens=63), answer)
        drive(engine)
    assert long.tokens == counting_model.answer([70] * 63, 1)
    assert answer.tokens == counting_model.answer([70], 63)


def test_the_queue_is_bounded_and_an_id_in_use_is_refused(counting_model: CountingModel) -> None:
    with opened(counting_model) as engine:
        received = [Received() for _ in range(5)]
        for number, receiver in enumerate(received):  # three rows and two places in the queue
            engine.submit([70], GREEDY, receiver, request_id=str(number))
        with pytest.raises(QueueFullError, match="2 requests wait already"):
            engine.submit([70], GREEDY, Received())
        drive(engine)
        engine.submit([70], GREEDY, Received(), request_id="0")
        with pytest.raises(InvalidRequestError, match="choose another id"):
            engine.submit([70], GREEDY, Received(), request_id="0")


def test_a_receiver_that_raises_loses_its_request_and_hurts_no_other(
    counting_model: CountingModel, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(output: RequestOutput) -> None:
        raise ValueError("no one is listening")

    with opened(counting_model) as engine:
        received = Received()
        engine.submit([70], GREEDY, broken, request_id="broken")
        engine.submit([71], GREEDY, received)
        drive(engine)
    assert received.tokens == counting_model.answer([71], 12)
    assert "broken" in caplog.text


def test_generate_streams_and_closing_it_aborts(counting_model: CountingModel) -> None:
    with opened(counting_model) as engine:
        outputs = list(engine.generate([70], GREEDY))
        assert [token for output in outputs for token in output.token_ids] == counting_model.answer([70], 12)
        stream = engine.generate([70], SamplingParams(temperature=0))
        next(stream)
        assert engine.num_live_requests == 1
        stream.close()
        wait_until(lambda: engine.num_live_requests == 0)
