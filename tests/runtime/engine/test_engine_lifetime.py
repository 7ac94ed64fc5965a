"""Opening, warming up and closing an engine, its thread, and artifacts that it must refuse."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from qwonnx.runtime.artifact.folder import file_sha256, open_artifact
from qwonnx.runtime.artifact.manifest import (
    ArtifactError,
    ArtifactHashError,
    read_manifest,
    write_manifest,
)
from qwonnx.runtime.cache.buffers import BuffersFactory
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.generation import Generation
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.errors import (
    EngineClosedError,
    SessionError,
    SettingsError,
)
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from tests.runtime.counting_model import CountingModel, make
from tests.runtime.engine.engine_driver import GREEDY, SMALL, Received, opened, wait_until

pytestmark = pytest.mark.fast


def test_an_engine_is_ready_after_its_warm_up_and_until_it_is_closed(counting_model: CountingModel) -> None:
    ready = []
    with opened(counting_model) as engine:
        ready.append(engine.is_ready)
        engine.warm_up()
        ready.append(engine.is_ready)
    assert [*ready, engine.is_ready] == [False, True, False]


def test_a_model_that_cannot_answer_does_not_become_ready(tmp_path: Path, make_buffers: BuffersFactory) -> None:
    model = make(tmp_path / "artifact", failing_text="H", make_buffers=make_buffers)
    with opened(model) as engine:
        with pytest.raises(SessionError, match="failed to run"):
            engine.warm_up()
        assert not engine.is_ready


@pytest.mark.parametrize("started", [True, False])
def test_closing_ends_everything_with_abort_and_takes_no_more(counting_model: CountingModel, started: bool) -> None:
    engine = counting_model.open(replace(SMALL, max_model_len=4096))
    received = [Received() for _ in range(5)]
    for receiver in received:
        engine.submit([70], SamplingParams(temperature=0), receiver)
    if started:
        engine.start()
        engine.start()
        wait_until(lambda: bool(received[0].outputs))
    engine.close()
    engine.close()
    assert [receiver.reason for receiver in received] == [FinishReason.ABORT] * 5
    with pytest.raises(EngineClosedError):
        engine.submit([70], GREEDY, Received())
    with pytest.raises(EngineClosedError):
        engine.start()
    engine.abort("anything")


def test_an_engine_may_be_closed_from_its_own_thread(counting_model: CountingModel) -> None:
    engine = counting_model.open(SMALL)
    reasons: list[FinishReason | None] = []

    def closing(output: RequestOutput) -> None:
        reasons.append(output.finish_reason)
        engine.close()

    engine.submit([70], GREEDY, closing)
    engine.start()
    wait_until(lambda: engine.num_live_requests == 0)
    assert reasons == [None, FinishReason.ABORT]


def test_a_fault_of_our_own_ends_every_request_and_closes_the_engine(
    counting_model: CountingModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(counting_model) as engine:
        monkeypatch.setattr(engine, "step", lambda: [][0])
        received = Received()
        engine.submit([70], GREEDY, received)
        engine.start()
        wait_until(lambda: received.reason is not None)
        assert received.reason is FinishReason.ERROR
        with pytest.raises(EngineClosedError):
            engine.submit([70], GREEDY, Received())
    assert "IndexError" in caplog.text


def test_a_fault_in_the_middle_of_a_step_leaves_no_request_without_an_end(
    counting_model: CountingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = Generation.push

    def failing_push(generation: Generation, token_id: int) -> RequestOutput:
        if generation.request_id == "second" and generation.sequence.num_generated == 1:
            raise ZeroDivisionError
        return push(generation, token_id)

    monkeypatch.setattr(Generation, "push", failing_push)
    with opened(counting_model) as engine:
        first, second = Received(), Received()
        engine.submit([70], replace(GREEDY, max_tokens=2), first, request_id="first")
        engine.submit([70], GREEDY, second, request_id="second")
        engine.start()
        wait_until(lambda: engine.num_live_requests == 0)
    assert first.reason is second.reason is FinishReason.ERROR  # the first's last output was not delivered
    assert (len(first.tokens), len(second.tokens)) == (1, 1)


def test_many_threads_may_submit_and_abort(counting_model: CountingModel) -> None:
    settings = replace(SMALL, max_queued_requests=100)
    with opened(counting_model, settings) as engine:
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
        wait_until(lambda: engine.num_live_requests == 0)
    for name, receiver in received.items():
        if receiver.reason is FinishReason.LENGTH:
            assert receiver.tokens == counting_model.answer([70 + int(name[0])], 12)
        else:
            assert receiver.reason is FinishReason.ABORT


def test_max_model_len_defaults_to_the_model_and_cannot_exceed_it(counting_model: CountingModel) -> None:
    with opened(counting_model, RuntimeSettings(num_threads=1)) as engine:
        assert engine.max_model_len == 4096
    with pytest.raises(SettingsError, match="at most 4096"):
        counting_model.open(RuntimeSettings(max_model_len=4097))


def test_a_provider_that_is_not_there_is_named(counting_model: CountingModel) -> None:
    with pytest.raises(SettingsError, match="NoSuchProvider"):
        counting_model.open(RuntimeSettings(providers=("NoSuchProvider",)))


def test_an_artifact_without_template_or_sampling_has_defaults(tmp_path: Path) -> None:
    model = make(tmp_path / "artifact", chat_template=None, generation_config={"eos_token_id": 3})
    with opened(model) as engine:
        assert engine.chat_template is None
        assert engine.default_sampling == SamplingParams()
        assert engine.eos_token_ids == {3, model.end_token, model.tokenizer.token_id("<|endoftext|>")}


@pytest.mark.parametrize("config", ['{"eos_token_id": "x"}', "[]", "{", '{"temperature": -1}'])
def test_a_generation_config_that_cannot_be_used_is_refused(tmp_path: Path, config: str) -> None:
    model = make(tmp_path / "artifact", generation_config_text=config)
    with pytest.raises(ArtifactError, match=r"generation_config\.json"):
        model.open()


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
    decoder = manifest.graphs["decoder"]
    write_manifest(folder, replace(manifest, graphs={"decoder": replace(decoder, states=decoder.states[1:])}))
    with pytest.raises(SessionError, match=r"past_key_values\.0\.conv_state"):
        Engine.open(folder)


def test_a_graph_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    model = make(tmp_path / "artifact")
    size = (model.folder / "decoder.onnx").stat().st_size
    (model.folder / "decoder.onnx").write_bytes(b"\xff" * size)
    with pytest.raises(ArtifactHashError, match="was changed after its export"):
        model.open()
    manifest = read_manifest(model.folder)
    files = (replace(file, sha256=file_sha256(model.folder / file.path)) for file in manifest.files)
    write_manifest(model.folder, replace(manifest, files=tuple(files)))
    with pytest.raises(SessionError, match="cannot load"):
        model.open()
