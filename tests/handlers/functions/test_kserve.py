"""KServe's routes: the Open Inference Protocol beside the API under /openai/v1."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from qwonnx.handlers.model_host import ModelHost
from qwonnx.runtime.engine.engine import Engine
from tests.handlers.fakes import ask
from tests.handlers.functions.platforms import check_stream, check_too_large, found, get, post, serving_on
from tests.handlers.serving import MODEL, RUNTIME, Served, chat, until

pytestmark = pytest.mark.fast

CHAT = "/openai/v1/chat/completions"
# As the protocol's specification has it: "inputs" and "outputs" with name, datatype and shape.
INFERENCE = {"inputs": [{"name": "messages", "datatype": "BYTES", "shape": [1], "data": ["Hi"]}]}


@pytest.fixture(scope="module")
def kserve(counting_folder: Path) -> Iterator[Served]:
    with serving_on("kserve", counting_folder, QWONNX_MAX_BODY_BYTES="100kB") as served:
        yield served


def test_the_protocols_routes_describe_the_server_and_the_model(kserve: Served) -> None:
    # The bodies are those that the client of kserve 0.21 reads.
    assert get(kserve, "/v2/health/live").json() == {"live": True}
    assert get(kserve, "/v2/health/ready").json() == {"ready": True}
    server = get(kserve, "/v2").json()
    assert (server["name"], server["extensions"]) == ("qwonnx", [])
    assert server["version"]
    for path in (f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/versions/1"):
        model = get(kserve, path).json()
        assert (model["name"], model["versions"]) == (MODEL, ["1"])
        assert all(tensor.keys() == {"name", "datatype", "shape"} for tensor in model["inputs"] + model["outputs"])
        assert get(kserve, f"{path}/ready").json() == {"name": MODEL, "ready": True}


def test_errors_have_the_protocols_form(kserve: Served) -> None:
    for path, status in (
        ("/v2/models/other", 404),
        ("/v2/models/other/ready", 404),
        (f"/v2/models/{MODEL}/versions/2", 404),
        ("/v2/nothing", 404),
    ):
        answer = get(kserve, path)
        assert (answer.status_code, list(answer.json())) == (status, ["error"]), path
        assert isinstance(answer.json()["error"], str)
    inference = post(kserve, f"/v2/models/{MODEL}/infer", INFERENCE)
    assert inference.status_code == 400
    assert inference.json() == {
        "error": "this model answers conversations, not tensors: send conversations to /openai/v1/chat/completions"
    }
    assert post(kserve, "/v2/models/other/infer", INFERENCE).status_code == 404
    assert get(kserve, f"/v2/models/{MODEL}/infer").status_code in (404, 405)


def test_the_api_is_under_kserves_path_for_it(kserve: Served) -> None:
    with openai.OpenAI(base_url=f"{kserve.url}/openai/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        completion = client.chat.completions.create(model=MODEL, messages=chat("Hi"), max_tokens=4)
        assert completion.choices[0].finish_reason == "length"
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model=MODEL, messages=chat("Hi"), temperature=9)
        assert refused.value.param == "temperature"
    check_stream(kserve, CHAT)


def test_a_body_over_the_limit_and_an_event_are_refused(kserve: Served) -> None:
    check_too_large(kserve, CHAT, 100_000)
    event = post(kserve, "/", {}, headers={"ce-specversion": "1.0", "ce-type": "org.kubeflow.serving.inference"})
    assert (event.status_code, event.json()["error"]["code"]) == (400, "invalid_event")


def test_readiness_is_never_true_before_the_first_token_and_metadata_waits(counting_folder: Path) -> None:
    may_load = threading.Event()

    def load() -> Engine:
        may_load.wait()
        return Engine.open(counting_folder, RUNTIME)

    host = ModelHost(load)
    host.start()
    platform = found("kserve")
    app = platform.application(host, platform.settings({}))
    metadata: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: metadata.append(ask(app, "GET", f"/v2/models/{MODEL}")))
    waiting.start()
    try:
        until(lambda: host.num_held == 1)
        for path in ("/v2/health/ready", f"/v2/models/{MODEL}/ready", "/health/ready"):
            assert ask(app, "GET", path).status_code == 503
        assert ask(app, "GET", "/v2/health/live").status_code == 200
    finally:
        may_load.set()
        host.wait()
        waiting.join()
    assert ask(app, "GET", f"/v2/models/{MODEL}/ready").status_code == 200
    assert metadata[0].json()["name"] == MODEL
    host.close()


def test_a_key_protects_metadata_and_conversations_and_no_probe(counting_folder: Path) -> None:
    with serving_on("kserve", counting_folder, QWONNX_API_KEY="secret") as served:
        assert get(served, "/v2/health/ready").status_code == 200
        refused = get(served, "/v2")
        assert (refused.status_code, list(refused.json())) == (401, ["error"])
        assert post(served, CHAT).status_code == 401
        assert post(served, CHAT, headers={"authorization": "Bearer secret"}).status_code == 200
