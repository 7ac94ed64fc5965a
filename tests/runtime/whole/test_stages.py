"""A model in three stages, two of them in processes of their own, beside the same model in one process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from qwonnx.export.pipeline import ExportOptions
from qwonnx.export.stages import export_stages, stage_folder
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.baking import bake
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason
from qwonnx.runtime.errors import SettingsError, StageLostError
from qwonnx.runtime.model.stages import joined
from qwonnx.runtime.model.stages.address import StageAddress
from qwonnx.runtime.model.stages.stage_server import StageServer
from qwonnx.runtime.model.stages.wire import Frames, Kind, WireError
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from tests.checkpoints.tokenizer import NUM_TOKENS
from tests.runtime.engine.engine_driver import Received, drive

SETTINGS = RuntimeSettings(num_threads=1, max_num_seqs=3, max_model_len=400, max_num_batched_tokens=64, spin=False)
PARAMS = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
KEY = "a key of the stages of a test"
READY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Staged:
    """Stages 2 and 3 run; where, and the folder of all."""

    out: Path
    addresses: tuple[str, ...]
    processes: list[subprocess.Popen[bytes]]

    def settings(self) -> RuntimeSettings:
        return replace(SETTINGS, stages=self.addresses)

    def start(self, number: int) -> None:
        self.processes[number - 2] = _stage_process(self.out, number, self.addresses[number - 2])


@pytest.fixture(scope="module")
def out(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stages") / "out"
    export_stages(tiny_checkpoint, out, 3, ExportOptions(weights="fp32"))
    return out


@pytest.fixture(scope="module")
def staged(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staged]:
    folder = tmp_path_factory.mktemp("s")  # a short path: sockets have a limit
    addresses = (f"unix:{folder}/2", f"unix:{folder}/3")
    processes = [_stage_process(out, number, address) for number, address in enumerate(addresses, 2)]
    yield Staged(out, addresses, processes)
    for process in processes:
        process.terminate()
    assert [process.wait(20) for process in processes] == [0, 0]


def _stage_process(out: Path, number: int, address: str) -> subprocess.Popen[bytes]:
    main = "from qwonnx.handlers.cli.main import main; main()"
    words = ["stage", str(stage_folder(out, number)), "--listen", address, "--threads", "1"]
    return subprocess.Popen([sys.executable, "-c", main, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _prompts() -> list[list[int]]:
    """Two that begin alike and are read in chunks, and shorter ones: more than there are rows."""
    random = np.random.default_rng(5)
    long = random.integers(0, NUM_TOKENS, 250).tolist()
    return [long, [*long[:200], 1, 2, 3], *(random.integers(0, NUM_TOKENS, length).tolist() for length in (1, 7, 90))]


def _answers(engine: Engine, prompts: Sequence[list[int]]) -> tuple[list[list[int]], int]:
    """Tokens of all prompts at once, and then of the first again; and how many tokens of it were kept."""
    received = [Received() for _ in prompts]
    for prompt, each in zip(prompts, received, strict=True):
        engine.submit(prompt, PARAMS, each, snapshot_at=[200] if len(prompt) > 200 else [])
    drive(engine)
    again = Received()
    engine.submit(prompts[0], PARAMS, again)
    drive(engine)
    return [each.tokens for each in (*received, again)], again.outputs[-1].num_cached_tokens


def test_three_stages_give_the_tokens_of_one_process(staged: Staged, tiny_fp32: Artifact) -> None:
    prompts = _prompts()
    with Engine.open(tiny_fp32, SETTINGS) as whole, Engine.open(stage_folder(staged.out, 1), staged.settings()) as cut:
        expected = _answers(whole, prompts)
        assert _answers(cut, prompts) == expected
        assert expected[1] == 200  # a kept prefix was restored in all stages
        assert cut.artifact.manifest.model.num_parameters == whole.artifact.manifest.model.num_parameters


def test_requests_that_give_their_rows_back_get_the_same_tokens(staged: Staged, tiny_fp32: Artifact) -> None:
    prompts = [prompt[:40] for prompt in _prompts()]
    with Engine.open(tiny_fp32, SETTINGS) as whole:
        expected = _answers(whole, prompts)[0]
        row = whole.row_account().max_bytes
        cost = whole._cache.segment_bytes(60)
    assert row > cost
    tight = replace(staged.settings(), cache_bytes=2 * cost, max_model_len=64)
    with Engine.open(stage_folder(staged.out, 1), tight) as cut:
        assert _answers(cut, prompts)[0] == expected


def test_a_capsule_has_the_states_of_all_stages(staged: Staged) -> None:
    prompt = _prompts()[0]
    answers = []
    with Engine.open(stage_folder(staged.out, 1), staged.settings()) as engine:
        answers.append(_answers(engine, [prompt])[0][0])
        capsule = engine.save_capsule(prompt[:200])
    assert capsule is not None
    with Engine.open(stage_folder(staged.out, 1), staged.settings()) as engine:
        assert engine.load_capsule(capsule) == 200
        received = Received()
        engine.submit(prompt, PARAMS, received)
        drive(engine)
        answers.append(received.tokens)
        assert received.outputs[-1].num_cached_tokens == 200
    assert answers[0] == answers[1]


def test_a_killed_stage_fails_its_requests_by_name_and_is_back(staged: Staged) -> None:
    prompt = _prompts()[0][:50]
    with Engine.open(stage_folder(staged.out, 1), staged.settings()) as engine:
        engine.warm_up()
        before = _collect(engine, prompt, 16)
        running = [Received() for _ in range(3)]
        for each in running:
            engine.submit(prompt, replace(PARAMS, max_tokens=340), each, snapshot_at=[30])
        _until(lambda: all(len(each.tokens) > 2 for each in running))
        staged.processes[1].send_signal(signal.SIGKILL)
        staged.processes[1].wait()
        _until(lambda: all(each.reason is not None for each in running))
        assert {each.reason for each in running} == {FinishReason.ERROR}
        for each in running:
            assert "stage 3 of 3 at unix:" in (each.outputs[-1].error or "")
        assert not engine.is_ready
        started = time.monotonic()
        staged.start(3)
        _until(lambda: engine.is_ready)
        assert time.monotonic() - started < READY_SECONDS
        assert _collect(engine, prompt, 16) == before
        assert engine.check() == []


def test_a_stage_that_dies_between_requests_does_not_fail_the_next(staged: Staged) -> None:
    prompt = _prompts()[0]
    with Engine.open(stage_folder(staged.out, 1), staged.settings()) as engine:
        engine.warm_up()
        before = _collect(engine, prompt, 8, snapshot_at=[200])
        staged.processes[0].send_signal(signal.SIGKILL)
        staged.processes[0].wait()
        _until(lambda: not engine.is_ready)  # nobody has asked for anything
        staged.start(2)
        _until(lambda: engine.is_ready)
        assert _collect(engine, prompt, 8) == before


def test_stages_that_do_not_belong_together_are_refused(staged: Staged, tiny_fp32: Artifact, tmp_path: Path) -> None:
    first = stage_folder(staged.out, 1)
    for artifact, addresses, words in (
        (first, (), "2, in their order"),
        (first, staged.addresses[:1], "names 1 others"),
        (first, staged.addresses[::-1], "stage 3 of 3 answers there"),
        (stage_folder(staged.out, 2), staged.addresses, "start it with `qwonnx stage`"),
        (tiny_fp32.folder, staged.addresses, "has the whole model"),
        (first, ("10.0.0.9:7000", "10.0.0.8:7000"), "QWONNX_STAGE_KEY"),
        (first, ("nowhere", "nowhere"), "HOST:PORT or unix:PATH"),
    ):
        with pytest.raises(SettingsError, match=words):
            Engine.open(artifact, replace(SETTINGS, stages=addresses))
    with pytest.raises(SettingsError, match="the whole model"):
        StageServer(tiny_fp32, SETTINGS)
    with pytest.raises(SettingsError, match="baked"):
        bake(first, [], settings=staged.settings())


def test_a_stage_that_does_not_answer_is_named(staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "_WAIT_SECONDS", 0.0)
    settings = replace(SETTINGS, stages=(f"unix:{tmp_path}/nobody", staged.addresses[1]))
    with pytest.raises(StageLostError, match=r"stage 2 of 3 at unix:.*/nobody is lost"):
        Engine.open(stage_folder(staged.out, 1), settings)


def test_an_engine_with_another_key_is_refused(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "_WAIT_SECONDS", 0.0)
    with _serving(out, 2, KEY) as second, _serving(out, 3, KEY) as third:
        for key, words in (("another key of the stages", "the keys differ"), (None, "the keys differ")):
            with pytest.raises(StageLostError, match=words):
                Engine.open(stage_folder(out, 1), replace(SETTINGS, stages=(second, third), stage_key=key))
        with Engine.open(stage_folder(out, 1), replace(SETTINGS, stages=(second, third), stage_key=KEY)) as engine:
            engine.warm_up()


def test_a_stage_survives_whatever_is_sent(out: Path) -> None:
    random = np.random.default_rng(3)
    with _serving(out, 2, None) as address:
        for attempt in range(60):
            with StageAddress.parse(address).connect(5) as connection:
                if attempt % 2:
                    _greet_and_open(connection)
                    frames = Frames(connection)
                    kinds = list(Kind)
                    numbers = random.integers(-2, 9, 5 * int(random.integers(0, 4))).astype("<i8").tobytes()
                    parts = [random.bytes(int(random.integers(0, 80))) for _ in range(int(random.integers(0, 5)))]
                    try:
                        frames.send(kinds[int(random.integers(len(kinds)))], [numbers, *parts])
                        frames.receive(1 << 20)
                    except WireError:
                        continue
                else:
                    connection.sendall(random.bytes(200))
        with StageAddress.parse(address).connect(5) as connection:
            _greet_and_open(connection)


def _greet_and_open(connection: socket.socket) -> None:
    from qwonnx.runtime.model.stages.step import StageLimits
    from qwonnx.runtime.model.stages.wire import introduce

    connection.settimeout(10)
    frames = Frames(connection)
    introduce(frames, None)
    frames.send(Kind.OPEN, [b"", StageLimits(2, 64, 32).packed()])
    assert frames.receive(4096)[0] is Kind.DONE


@contextmanager
def _serving(out: Path, number: int, key: str | None) -> Iterator[str]:
    """A stage in a thread, on a free port."""
    server = StageServer(open_artifact(stage_folder(out, number)), replace(SETTINGS, stage_key=key))
    with StageAddress.parse("127.0.0.1:0").listen() as listener:
        thread = threading.Thread(target=server.serve, args=(listener,))
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.close()
            thread.join()


def _collect(engine: Engine, prompt: list[int], max_tokens: int, snapshot_at: Sequence[int] = ()) -> list[int]:
    received = Received()
    engine.submit(prompt, replace(PARAMS, max_tokens=max_tokens), received, snapshot_at=snapshot_at)
    _until(lambda: received.reason is not None)
    assert received.reason is FinishReason.LENGTH, received.outputs[-1].error
    return received.tokens


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 2 * READY_SECONDS * float(os.environ.get("QWONNX_PATIENCE", "1"))
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)
