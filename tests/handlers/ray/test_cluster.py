"""A Ray cluster on this machine: replicas, stages and a data set. `make soak` runs it, where Ray is installed."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwonnx.export.pipeline import ExportOptions, export_checkpoint
from qwonnx.export.stages import export_stages, stage_folder
from qwonnx.runtime import Engine, FinishReason, RuntimeSettings, SamplingParams
from tests.handlers.serving import serving
from tests.runtime.engine.engine_driver import Received

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra ray)"),
    pytest.mark.filterwarnings("ignore"),  # of Ray's own code
]

ROOT = Path(__file__).resolve().parents[3]
VARIABLES = {"QWONNX_NUM_THREADS": "1", "QWONNX_MAX_MODEL_LEN": "512", "QWONNX_SPIN": "off"}
SECONDS = 120.0


@pytest.fixture(scope="module")
def variables(counting_folder: Path) -> Iterator[dict[str, str]]:
    """The variables of all processes."""
    made = VARIABLES | {"QWONNX_ARTIFACT": str(counting_folder)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.items():
            patch.setenv(name, value)
        yield made


@pytest.fixture(scope="module")
def cluster(variables: dict[str, str]) -> Iterator[None]:
    import ray

    runtime_env = {"env_vars": variables | {"PYTHONPATH": str(ROOT)}}
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 << 20, runtime_env=runtime_env)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def url(cluster: None) -> Iterator[str]:
    from ray import serve

    from qwonnx.handlers.ray.app import application

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application({"min_replicas": 2, "max_replicas": 2}), name="qwonnx", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def _chat(url: str, text: str) -> httpx.Response:
    body = {
        "model": "counting-model",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 24,
    }
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=SECONDS, trust_env=False)


def _text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    answer: str = response.json()["choices"][0]["message"]["content"]
    return answer


def test_two_replicas_give_the_tokens_of_one_process(url: str, counting_folder: Path) -> None:
    from ray import serve

    texts = [f"number {index}" for index in range(24)]
    with serving(counting_folder) as alone:
        expected = [_text(_chat(alone.url, text)) for text in texts]
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda text: _chat(url, text), texts))
    assert [_text(response) for response in responses] == expected
    assert {len(response.headers.get_list("x-request-id")) for response in responses} == {1}
    deployment = serve.status().applications["qwonnx"].deployments["qwonnx"]
    assert deployment.replica_states == {"RUNNING": 2}
    assert httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200


def test_a_stream_comes_event_by_event(url: str) -> None:
    body = {
        "model": "counting-model",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "max_tokens": 20,
    }
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=SECONDS, trust_env=False) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert len(lines) > 10
    assert lines[-1] == "data: [DONE]"


def test_a_data_set_is_answered(cluster: None, counting_folder: Path) -> None:
    import ray.data

    from qwonnx.handlers.ray.answers import Answers

    questions = [f"number {index}" for index in range(20)]
    done: list[dict[str, Any]] = (
        ray.data.from_items([{"id": index, "question": question} for index, question in enumerate(questions)])
        .map_batches(
            Answers,
            fn_constructor_kwargs={
                "artifact": str(counting_folder),
                "params": SamplingParams(temperature=0, max_tokens=24),
            },
            concurrency=1,
            batch_size=8,
            num_cpus=1,
        )
        .take_all()
    )
    with serving(counting_folder) as alone:
        expected = {index: _text(_chat(alone.url, question)) for index, question in enumerate(questions)}
    assert {row["id"]: row["answer"] for row in done} == expected


def test_stages_as_actors_give_the_tokens_of_one_process_and_come_back(
    cluster: None, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import ray

    from qwonnx.handlers.ray.stages import start_stage

    folder = tmp_path_factory.mktemp("s")
    export_stages(tiny_checkpoint, folder / "out", 2, ExportOptions(weights="fp32"))
    export_checkpoint(tiny_checkpoint, folder / "whole", ExportOptions(weights="fp32"))
    address = f"unix:{folder}/2"
    actor = start_stage(stage_folder(folder / "out", 2), address)
    assert ray.get(actor.name.remote(), timeout=SECONDS) == "stage 2 of 2"
    settings = RuntimeSettings.from_environment()
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    with Engine.open(folder / "whole", settings) as whole:
        whole.start()
        expected = _answer(whole, prompt, 32)
    staged = RuntimeSettings.from_environment(os.environ | {"QWONNX_STAGES": address})
    with Engine.open(stage_folder(folder / "out", 1), staged) as engine:
        engine.warm_up()
        assert _answer(engine, prompt, 32).tokens == expected.tokens
        killed = ray.get(actor.process_id.remote(), timeout=SECONDS)
        threading.Timer(0.05, os.kill, (killed, signal.SIGKILL)).start()
        cut = _answer(engine, prompt, 490)
        assert cut.reason is FinishReason.ERROR
        assert f"stage 2 of 2 at {address}" in (cut.outputs[-1].error or "")
        started = time.monotonic()
        _until(lambda: engine.is_ready)
        assert time.monotonic() - started < 30
        assert _answer(engine, prompt, 32).tokens == expected.tokens


def _answer(engine: Engine, prompt: list[int], max_tokens: int) -> Received:
    received = Received()
    engine.submit(prompt, SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True), received)
    _until(lambda: received.reason is not None)
    return received


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)
