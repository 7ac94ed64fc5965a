"""The engine on the counting model, whose every token depends on every state and can be predicted."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from qwonnx.export.artifact import ArtifactError, open_artifact, write_manifest
from qwonnx.runtime.engine import Engine
from qwonnx.runtime.errors import (
    EngineClosedError,
    InvalidRequestError,
    QueueFullError,
    SessionError,
    SettingsError,
)
from qwonnx.runtime.request import FinishReason, RequestOutput
from qwonnx.runtime.sampling_params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from tests.runtime.counting_model import FAILING_TEXT, NAN_TEXT, CountingModel, make

GREEDY = SamplingParams(temperature=0, max_tokens=12)
SMALL = RuntimeSettings(
    num_threads=1, max_num_seqs=3, max_num_batched_tokens=4, max_model_len=64, max_queued_requests=2
)
TEXT = "the quick é \U0001f600 in a box"


class Received:
    """Outputs of one request, checked as they come."""

    def __init__(self) -> None:
        self.outputs: list[RequestOutput] = []

    def __call__(self, output: RequestOutput) -> None:
        assert self.reason is None, "an output after the last"
        self.outputs.append(output)

    @property
    def reason(self) -> FinishReason | None:
        return self.outputs[-1].finish_reason if self.outputs else None

    @property
    def tokens(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)


@contextmanager
def _opened(model: CountingModel, settings: RuntimeSettings = SMALL) -> Iterator[Engine]:
    with Engine.open(model.folder, settings) as engine:
        yield engine


def _drive(engine: Engine, steps: int = 1000) -> None:
    """Step until all is idle, checking the accounts each time."""
    for _ in range(steps):
        engine.step()
        assert engine.check() == []
        if not engine.num_live_requests:
            return
    raise AssertionError("the engine does not come to an end")


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 64])
def test_a_prompt_in_chunks_of_any_size_is_answered_like_the_whole(counting_model: CountingModel, chunk: int) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    with _opened(counting_model, replace(SMALL, max_num_batched_tokens=chunk)) as engine:
        received = Received()
        engine.submit(prompt, GREEDY, received)
        _drive(engine)
    assert received.tokens == counting_model.answer(prompt, 12)
    assert received.reason is FinishReason.LENGTH


def test_interleaved_requests_are_answered_as_if_alone(counting_model: CountingModel) -> None:
    prompts = [counting_model.tokenizer.encode(TEXT[i:] + "x" * i) for i in range(5)]
    with _opened(counting_model) as engine:
        received = [Received() for _ in prompts]
        for i, (prompt, receiver) in enumerate(zip(prompts, received, strict=True)):
            engine.submit(prompt, replace(GREEDY, max_tokens=4 + 5 * i), receiver)
            engine.step()
        _drive(engine)
    for i, (prompt, receiver) in enumerate(zip(prompts, received, strict=True)):
        assert receiver.tokens == counting_model.answer(prompt, 4 + 5 * i)


def test_a_rows_second_sequence_sees_nothing_of_the_first(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    with _opened(counting_model, replace(SMALL, max_num_seqs=1)) as engine:
        for _ in range(3):
            received = Received()
            engine.submit(prompt, GREEDY, received)
            _drive(engine)
            assert received.tokens == counting_model.answer(prompt, 12)


def test_the_models_end_token_stops_and_is_counted_but_not_shown(ending_model: CountingModel) -> None:
    prompt = ending_model.tokenizer.encode("0123456789")
    with _opened(ending_model) as engine:
        received = Received()
        engine.submit(prompt, SamplingParams(temperature=0), received)
        _drive(engine)
    assert received.reason is FinishReason.STOP
    assert received.tokens[-1] == ending_model.end_token
    assert len(received.tokens) == 24 - 10 + 1 == received.outputs[-1].num_generated_tokens
    assert received.text == ending_model.tokenizer.decode(received.tokens)
    assert received.outputs[-1].num_prompt_tokens == 10


def test_ignore_eos_goes_on_to_the_length(ending_model: CountingModel) -> None:
    with _opened(ending_model) as engine:
        received = Received()
        engine.submit(ending_model.tokenizer.encode("ab"), SamplingParams(temperature=0, ignore_eos=True), received)
        _drive(engine)
    assert received.reason is FinishReason.LENGTH
    assert received.outputs[-1].num_generated_tokens == 62  # max_model_len less the prompt


def test_a_stop_token_and_a_stop_string_end_the_answer(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    answer = counting_model.answer(prompt, 12)
    text = counting_model.tokenizer.decode(answer)
    with _opened(counting_model) as engine:
        by_token, by_string = Received(), Received()
        engine.submit(prompt, replace(GREEDY, stop_token_ids=(answer[5],)), by_token)
        engine.submit(prompt, replace(GREEDY, stop=(text[4:7],)), by_string)
        _drive(engine)
    assert by_token.reason is by_string.reason is FinishReason.STOP
    assert by_token.text == text[: answer.index(answer[5])]
    assert by_string.text == text[: text.index(text[4:7])]


def test_text_held_back_for_a_stop_string_is_given_at_the_end(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    text = counting_model.tokenizer.decode(counting_model.answer(prompt, 12))
    with _opened(counting_model) as engine:
        received = Received()
        engine.submit(prompt, replace(GREEDY, stop=(text[-3:] + "!",)), received)
        _drive(engine)
    assert received.reason is FinishReason.LENGTH
    assert received.text == text


def test_a_seed_gives_the_same_answer_alone_and_among_others(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    params = SamplingParams(temperature=5, seed=3, max_tokens=10)
    answers = []
    for others in (0, 2):
        with _opened(counting_model) as engine:
            received = Received()
            for _ in range(others):
                engine.submit(prompt[3:], replace(params, seed=None), Received())
            engine.submit(prompt, params, received)
            _drive(engine)
            answers.append(received.tokens)
    assert answers[0] == answers[1] != counting_model.answer(prompt, 10)


def test_an_abort_takes_effect_within_one_step_wherever_the_request_is(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    with _opened(counting_model, replace(SMALL, max_num_seqs=2)) as engine:
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
    with _opened(counting_model) as engine:
        well, failing, after = Received(), Received(), Received()
        engine.submit(encode(TEXT), GREEDY, well)
        engine.submit(encode(f"12345{FAILING_TEXT}78"), GREEDY, failing)
        _drive(engine)
        engine.submit(encode(TEXT), GREEDY, after)
        _drive(engine)
    assert failing.reason is FinishReason.ERROR
    error = failing.outputs[-1].error
    assert error is not None
    assert "ONNX Runtime failed to run a step" in error
    assert "\n" not in error
    assert well.tokens == after.tokens == counting_model.answer(encode(TEXT), 12)


def test_logits_that_are_no_numbers_end_only_their_own_request(counting_model: CountingModel) -> None:
    encode = counting_model.tokenizer.encode
    with _opened(counting_model) as engine:
        well, broken = Received(), Received()
        engine.submit(encode(f"ab{NAN_TEXT}"), GREEDY, broken)
        engine.submit(encode(TEXT), GREEDY, well)
        _drive(engine)
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
        ([5] * 60, SamplingParams(max_tokens=5), "max_tokens", "context_length_exceeded"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_at_once(
    counting_model: CountingModel, prompt: list[int], params: SamplingParams, param: str, code: str | None
) -> None:
    with _opened(counting_model) as engine:
        with pytest.raises(InvalidRequestError) as caught:
            engine.submit(prompt, params, Received())
        assert (caught.value.param, caught.value.code) == (param, code)
        assert engine.num_live_requests == 0


def test_the_longest_prompt_and_answer_fill_the_cache_exactly(counting_model: CountingModel) -> None:
    with _opened(counting_model) as engine:
        long, answer = Received(), Received()
        engine.submit([70] * 63, SamplingParams(temperature=0), long)
        engine.submit([70], SamplingParams(temperature=0, max_tokens=63), answer)
        _drive(engine)
    assert long.tokens == counting_model.answer([70] * 63, 1)
    assert answer.tokens == counting_model.answer([70], 63)


def test_the_queue_is_bounded_and_an_id_in_use_is_refused(counting_model: CountingModel) -> None:
    with _opened(counting_model) as engine:
        received = [Received() for _ in range(5)]
        for number, receiver in enumerate(received):  # three rows and two places in the queue
            engine.submit([70], GREEDY, receiver, request_id=str(number))
        with pytest.raises(QueueFullError, match="2 requests wait already"):
            engine.submit([70], GREEDY, Received())
        _drive(engine)
        engine.submit([70], GREEDY, Received(), request_id="0")
        with pytest.raises(InvalidRequestError, match="choose another id"):
            engine.submit([70], GREEDY, Received(), request_id="0")


def test_a_receiver_that_raises_loses_its_request_and_hurts_no_other(
    counting_model: CountingModel, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(output: RequestOutput) -> None:
        raise ValueError("no one is listening")

    with _opened(counting_model) as engine:
        received = Received()
        engine.submit([70], GREEDY, broken, request_id="broken")
        engine.submit([71], GREEDY, received)
        _drive(engine)
    assert received.tokens == counting_model.answer([71], 12)
    assert "broken" in caplog.text


def test_generate_streams_and_closing_it_aborts(counting_model: CountingModel) -> None:
    with _opened(counting_model) as engine:
        outputs = list(engine.generate([70], GREEDY))
        assert [token for output in outputs for token in output.token_ids] == counting_model.answer([70], 12)
        stream = engine.generate([70], SamplingParams(temperature=0))
        next(stream)
        assert engine.num_live_requests == 1
        stream.close()  # type: ignore[attr-defined]
        _wait_until(lambda: engine.num_live_requests == 0)


def test_an_engine_is_ready_after_its_warm_up_and_until_it_is_closed(counting_model: CountingModel) -> None:
    with _opened(counting_model) as engine:
        assert not engine.is_ready
        engine.warm_up()
        assert engine.is_ready
    assert not engine.is_ready


def test_a_model_that_cannot_answer_does_not_become_ready(tmp_path: Path) -> None:
    model = make(tmp_path / "artifact", failing_text="H")
    with _opened(model) as engine:
        with pytest.raises(SessionError, match="failed to run"):
            engine.warm_up()
        assert not engine.is_ready


@pytest.mark.parametrize("started", [True, False])
def test_closing_ends_everything_with_abort_and_takes_no_more(counting_model: CountingModel, started: bool) -> None:
    engine = Engine.open(counting_model.folder, replace(SMALL, max_model_len=4096))
    received = [Received() for _ in range(5)]
    for receiver in received:
        engine.submit([70], SamplingParams(temperature=0), receiver)
    if started:
        engine.start()
        engine.start()
        _wait_until(lambda: bool(received[0].outputs))
    engine.close()
    engine.close()
    assert [receiver.reason for receiver in received] == [FinishReason.ABORT] * 5
    with pytest.raises(EngineClosedError):
        engine.submit([70], GREEDY, Received())
    with pytest.raises(EngineClosedError):
        engine.start()
    engine.abort("anything")


def test_an_engine_may_be_closed_from_its_own_thread(counting_model: CountingModel) -> None:
    engine = Engine.open(counting_model.folder, SMALL)
    reasons: list[FinishReason | None] = []

    def closing(output: RequestOutput) -> None:
        reasons.append(output.finish_reason)
        engine.close()

    engine.submit([70], GREEDY, closing)
    engine.start()
    _wait_until(lambda: engine.num_live_requests == 0)
    assert reasons == [None, FinishReason.ABORT]


def test_a_fault_of_our_own_ends_every_request_and_closes_the_engine(
    counting_model: CountingModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with _opened(counting_model) as engine:
        monkeypatch.setattr(engine, "step", lambda: [][0])
        received = Received()
        engine.submit([70], GREEDY, received)
        engine.start()
        _wait_until(lambda: received.reason is not None)
        assert received.reason is FinishReason.ERROR
        with pytest.raises(EngineClosedError):
            engine.submit([70], GREEDY, Received())
    assert "IndexError" in caplog.text


def test_many_threads_may_submit_and_abort(counting_model: CountingModel) -> None:
    settings = replace(SMALL, max_queued_requests=100)
    with _opened(counting_model, settings) as engine:
        engine.start()
        received: dict[str, Received] = {}

        def client(number: int) -> None:
            for turn in range(5):
                name = f"{number}.{turn}"
                received[name] = Received()
                engine.submit([70 + number], GREEDY, received[name], request_id=name)
                if turn % 2:
                    engine.abort(name)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _wait_until(lambda: engine.num_live_requests == 0)
    for name, receiver in received.items():
        if receiver.reason is FinishReason.LENGTH:
            assert receiver.tokens == counting_model.answer([70 + int(name[0])], 12)
        else:
            assert receiver.reason is FinishReason.ABORT


def test_max_model_len_defaults_to_the_model_and_cannot_exceed_it(counting_model: CountingModel) -> None:
    with _opened(counting_model, RuntimeSettings(num_threads=1)) as engine:
        assert engine.max_model_len == 4096
    with pytest.raises(SettingsError, match="at most 4096"):
        Engine.open(counting_model.folder, RuntimeSettings(max_model_len=4097))


def test_a_provider_that_is_not_there_is_named(counting_model: CountingModel) -> None:
    with pytest.raises(SettingsError, match="NoSuchProvider"):
        Engine.open(counting_model.folder, RuntimeSettings(providers=("NoSuchProvider",)))


def test_an_artifact_without_template_or_sampling_has_defaults(tmp_path: Path) -> None:
    model = make(tmp_path / "artifact", chat_template=None, generation_config={"eos_token_id": 3})
    with _opened(model) as engine:
        assert engine.chat_template is None
        assert engine.default_sampling == SamplingParams()
        assert engine.eos_token_ids == {3, model.end_token, model.tokenizer.token_id("<|endoftext|>")}


@pytest.mark.parametrize("config", ['{"eos_token_id": "x"}', "[]", "{", '{"temperature": -1}'])
def test_a_generation_config_that_cannot_be_used_is_refused(tmp_path: Path, config: str) -> None:
    model = make(tmp_path / "artifact", generation_config_text=config)
    with pytest.raises(ArtifactError, match=r"generation_config\.json"):
        Engine.open(model.folder)


def test_an_artifact_for_a_newer_onnx_runtime_says_so(counting_model: CountingModel, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(counting_model.folder, folder)
    write_manifest(folder, replace(open_artifact(folder).manifest, minimum_onnxruntime="99.1"))
    with pytest.raises(SessionError, match=r"needs ONNX Runtime 99\.1"):
        Engine.open(folder)


def test_a_graph_that_is_not_the_manifests_is_refused(counting_model: CountingModel, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(counting_model.folder, folder)
    manifest = open_artifact(folder).manifest
    write_manifest(folder, replace(manifest, states=manifest.states[1:]))
    with pytest.raises(SessionError, match=r"past_key_values\.0\.conv_state"):
        Engine.open(folder)


def test_a_graph_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    model = make(tmp_path / "artifact")
    size = (model.folder / "decoder.onnx").stat().st_size
    (model.folder / "decoder.onnx").write_bytes(b"\xff" * size)
    with pytest.raises(SessionError, match="cannot load"):
        Engine.open(model.folder)


def _wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("waited ten seconds in vain")
