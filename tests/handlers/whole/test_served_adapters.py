"""Adapters of a server: named as models, listed with their parent, loaded and unloaded by calls with their own key."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from infra.bench.runtime_adapters import write_adapter
from qwonnx.export.pipeline import ExportOptions, export_checkpoint
from qwonnx.handlers.app import create_app
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime import Engine, RuntimeSettings
from qwonnx.runtime.errors import AdapterError, SettingsError
from tests.checkpoints import write_tiny
from tests.handlers.serving import Served, serving, until

RUNTIME = RuntimeSettings(num_threads=1, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=512, spin=False)
CLIENT = {"authorization": "Bearer clients"}
ADMIN = {"authorization": "Bearer the-admin-key"}
SIZE = 0.5  # of an adapter's numbers, which change answers
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    export_checkpoint(
        write_tiny(folder / "checkpoint"),
        folder / "artifact",
        ExportOptions(weights="fp32", activations="float32", runtime_adapters=("q_proj", "o_proj")),
    )
    return folder / "artifact"


@pytest.fixture(scope="module")
def adapters(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapters one, two and three."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two", "three")):
        write_adapter(artifact, folder / name, 8, seed, SIZE)
    return folder


@pytest.fixture(scope="module")
def served(artifact: Path, adapters: Path) -> Iterator[Served]:
    runtime = replace(RUNTIME, adapters=(f"one={adapters / 'one'}", f"two={adapters / 'two'}"), max_adapters=2)
    settings = ServerSettings(
        model_name="base",
        shutdown_seconds=0.5,
        api_key="clients",
        admin_key="the-admin-key",
        adapters_folder=str(adapters),
    )
    with serving(artifact, runtime=runtime, settings=settings) as found:
        yield found


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with served.client("clients") as made:
        yield made


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with served.http() as made:
        yield made


def answer(client: openai.OpenAI, model: str, **options: object) -> str:
    told = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Hello there"}],
        temperature=0,
        max_tokens=12,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}, "ignore_eos": True, **options},
    )
    assert told.model == model
    return told.choices[0].message.content or ""


def test_an_adapter_is_a_model_of_the_server(client: openai.OpenAI) -> None:
    listed = {model.id: getattr(model, "parent", None) for model in client.models.list()}
    assert listed == {"base": None, "one": "base", "two": "base"}
    assert getattr(client.models.retrieve("two"), "parent", None) == "base"
    texts = {name: answer(client, name) for name in ("base", "one", "two")}
    assert len(set(texts.values())) == 3
    for name, text in texts.items():
        assert answer(client, name) == text, "also after the others"
    with pytest.raises(openai.NotFoundError, match="use 'base' or 'one' or 'two'"):
        answer(client, "four")


def test_every_api_answers_with_the_adapter(client: openai.OpenAI, http: httpx.Client) -> None:
    for model in ("base", "one"):
        chat = answer(client, model)
        asked = {"model": model, "messages": [{"role": "user", "content": "Hello there"}], "temperature": 0}
        told = http.post("/v1/messages", json={**asked, "max_tokens": 12}, headers=CLIENT).json()
        assert told["model"] == model
        text = "".join(block["text"] for block in told["content"] if block["type"] == "text")
        assert text
        assert chat.startswith(text), "its end token counts"
        completed = client.completions.create(
            model=model, prompt="Hello there", temperature=0, max_tokens=12, extra_body={"ignore_eos": True}
        )
        assert completed.model == model
    question = {"model": "one:latest", "messages": [{"role": "user", "content": "Hello there"}], "stream": False}
    limits = {"think": False, "options": {"temperature": 0, "num_predict": 12}}
    ollama = http.post("/api/chat", json={**question, **limits}, headers=CLIENT).json()
    assert ollama["message"]["content"]
    assert answer(client, "one").startswith(ollama["message"]["content"])


def test_clients_of_different_adapters_share_steps(client: openai.OpenAI, http: httpx.Client) -> None:
    names = ["base", "one", "two", "one"] * 3
    alone = {name: answer(client, name) for name in set(names)}
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda name: answer(client, name), names)) == [alone[name] for name in names]
    page = http.get("/metrics", headers=CLIENT).text
    assert "qwonnx_adapters_loaded 2" in page
    assert "qwonnx_adapters_max 2" in page


def test_an_admin_loads_and_unloads_adapters(client: openai.OpenAI, http: httpx.Client) -> None:
    assert http.post(LOAD, json={"lora_name": "three", "lora_path": "three"}).status_code == 401
    assert http.post(LOAD, json={"lora_name": "x", "lora_path": "three"}, headers=CLIENT).status_code == 401
    loaded = http.post(LOAD, json={"lora_name": "three", "lora_path": "three"}, headers=ADMIN)
    assert (loaded.status_code, "added" in loaded.text) == (200, True)
    three = answer(client, "three")
    assert three not in {answer(client, name) for name in ("base", "one", "two")}
    assert [model.id for model in client.models.list()] == ["base", "one", "two", "three"]
    assert http.post(UNLOAD, json={"lora_name": "three"}, headers=ADMIN).status_code == 200
    with pytest.raises(openai.NotFoundError):
        answer(client, "three")
    gone = http.post(UNLOAD, json={"lora_name": "three"}, headers=ADMIN)
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../one",
        "/",
        "/etc",
        "one/../..",
        "link",
        "nowhere",
        "one/adapter_config.json",
        "a\0b",
        "x" * 9000,
    ],
)
def test_no_path_leads_out_of_the_folder(http: httpx.Client, adapters: Path, path: str) -> None:
    if path == "link" and not (adapters / "link").exists():
        (adapters / "link").symlink_to(adapters.parent)
    refused = http.post(LOAD, json={"lora_name": "new", "lora_path": path}, headers=ADMIN)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "lora_path is not a folder in the server's folder of adapters"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not right"),
        (b'{"lora_name": "x"}', "the body is not right"),
        (b'{"lora_name": "base", "lora_path": "one"}', "the model's own name"),
        (b'{"lora_name": "", "lora_path": "one"}', "no name of an adapter"),
        (b'{"lora_name": "a\\nb", "lora_path": "one"}', "no name of an adapter"),
    ],
)
def test_a_wrong_call_is_one_line(http: httpx.Client, body: bytes, message: str) -> None:
    refused = http.post(LOAD, content=body, headers=ADMIN)
    assert refused.status_code == 400
    assert message in refused.json()["error"]["message"]


def test_an_adapter_that_cannot_be_used_is_refused_and_changes_nothing(
    client: openai.OpenAI, http: httpx.Client, artifact: Path, adapters: Path
) -> None:
    large = write_adapter(artifact, adapters / "large", 40, 9, SIZE)
    refused = http.post(LOAD, json={"lora_name": "one", "lora_path": "large"}, headers=ADMIN)
    assert "has rank 40 and slots have 16" in refused.json()["error"]["message"]
    assert str(adapters) not in refused.text
    assert answer(client, "one")
    for file in large.iterdir():
        file.unlink()
    large.rmdir()


def test_without_an_admin_key_there_are_no_such_calls(artifact: Path) -> None:
    with serving(artifact, runtime=RUNTIME) as plain, plain.http() as http:
        assert http.post(LOAD, json={}, headers=ADMIN).status_code == 404
    for key, folder in (("k", None), (None, "f")):
        with pytest.raises(SettingsError, match="belong together"):
            create_app(ModelHost(lambda: Engine.open(artifact)), ServerSettings(admin_key=key, adapters_folder=folder))
    with pytest.raises(SettingsError, match="spaces"):
        ServerSettings(admin_key="a b", adapters_folder="f")
    with pytest.raises(SettingsError, match="every client has"):
        ServerSettings(admin_key="k", api_key="k", adapters_folder="f")
    assert "secret-key" not in repr(ServerSettings(admin_key="secret-key", adapters_folder="f"))


def test_a_loading_adapter_stops_no_other_answer(served: Served, client: openai.OpenAI, http: httpx.Client) -> None:
    """Adapters are written beside steps: while one waits for its file, others answer."""
    engine = served.engine
    held, begun = threading.Event(), threading.Event()
    adapter = engine._adapters.find("two")
    write = adapter.write

    def slow(slot: np.ndarray) -> None:
        begun.set()
        held.wait(20)
        write(slot)

    expected = {name: answer(client, name) for name in ("base", "one", "two")}
    http.post(LOAD, json={"lora_name": "three", "lora_path": "three"}, headers=ADMIN)
    answer(client, "one")
    answer(client, "three")  # takes the slot of two
    adapter.write = slow  # type: ignore[method-assign]
    try:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(answer, client, "two")
            until(begun.is_set)
            assert answer(client, "base") == expected["base"]
            assert not waiting.done()
            held.set()
            assert waiting.result() == expected["two"]
    finally:
        adapter.write = write  # type: ignore[method-assign]
        http.post(UNLOAD, json={"lora_name": "three"}, headers=ADMIN)


def test_an_adapter_at_a_url_is_fetched_and_checked(artifact: Path, adapters: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    content = b""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        data = (adapters / "one" / name).read_bytes()
        memory.pipe_file(f"/adapters/one/{name}", data)
        content += data
    digest = hashlib.sha256(content).hexdigest()
    url = f"memory://adapters/one#sha256={digest}"
    runtime = replace(RUNTIME, adapters=(f"one={url}",))
    with Engine.open(artifact, runtime) as engine:
        folder = engine._adapters.find("one").folder
        assert folder.stat().st_mode & 0o077 == 0 or folder.parent.stat().st_mode & 0o077 == 0
        local = Engine.open(artifact, replace(RUNTIME, adapters=(f"one={adapters / 'one'}",)))
        with local:
            assert local.adapters() == engine.adapters()
    assert not folder.exists()
    for wrong, kind, message in (
        ("memory://adapters/one", SettingsError, "needs #sha256="),
        (f"memory://adapters/one#sha256={'0' * 64}", AdapterError, f"it is {digest}"),
        (f"memory://adapters/none#sha256={digest}", AdapterError, "has no adapter_config.json"),
        (f"simplecache::memory://adapters/one#sha256={digest}", SettingsError, "needs #sha256="),
        (f"nothing://me:secret@adapters/one#sha256={digest}", SettingsError, "cannot be read there"),
    ):
        with pytest.raises(kind, match=message) as refused:
            Engine.open(artifact, replace(RUNTIME, adapters=(f"one={wrong}",)))
        assert "secret" not in str(refused.value)
