"""/metrics, read with Prometheus' own parser."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from qwonnx.handlers.app import create_app
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.text.parser_fallbacks import PARSER_FALLBACKS
from tests.handlers.fakes import ask
from tests.handlers.serving import MODEL, RUNTIME, Served, chat, serving

pytestmark = pytest.mark.fast


def samples(text: str, prefixes: tuple[str, ...] = ("qwonnx_",)) -> dict[str, float]:
    """By name and labels; every family has a type and a meaning, and one of the prefixes."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        assert family.name.startswith(prefixes)
        assert family.documentation
        assert family.type in ("gauge", "counter", "histogram")
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in found
            found[key] = sample.value
    return found


def post(served: Served, **fields: object) -> int:
    body = {"model": MODEL, "messages": chat("How many?"), "max_tokens": 4, **fields}
    with served.http() as client:
        return client.post("/v1/chat/completions", json=body).status_code


def read(served: Served) -> dict[str, float]:
    answer = httpx.get(f"{served.url}/metrics", trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return samples(answer.text)


def test_what_is_asked_is_counted(counting_folder: Path) -> None:
    with serving(counting_folder) as served, served.client() as client:
        before = read(served)
        for _ in range(2):
            client.chat.completions.create(model=MODEL, messages=chat("How many?"), max_tokens=6)
        after = read(served)
    grown = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name)}
    assert grown["qwonnx_generated_tokens_total"] == 12
    assert grown["qwonnx_requests_finished_total{reason=length}"] == 2
    assert 0 < grown["qwonnx_cached_tokens_total"] < grown["qwonnx_prompt_tokens_total"]
    assert grown["qwonnx_time_to_first_token_seconds_count"] == 2
    assert grown["qwonnx_time_to_first_token_seconds_bucket{le=+Inf}"] == 2
    assert grown["qwonnx_time_to_first_token_seconds_sum"] > 0
    assert grown["qwonnx_between_tokens_seconds_count"] == 10
    assert 0 < grown["qwonnx_prefix_cache_bytes"] < after["qwonnx_prefix_cache_max_bytes"]
    assert after["qwonnx_rows_max"] == RUNTIME.max_num_seqs
    assert grown["qwonnx_request_seconds_count"] == grown["qwonnx_queue_seconds_count"] == 2
    assert grown["qwonnx_request_seconds_sum"] >= grown["qwonnx_between_tokens_seconds_sum"]
    chats = "endpoint=/v1/chat/completions"
    assert grown[f"qwonnx_http_requests_total{{{chats},method=POST,status=200}}"] == 2
    assert grown[f"qwonnx_http_request_seconds_count{{{chats}}}"] == 2
    assert after["qwonnx_ready"] == 1
    assert after["qwonnx_requests_running"] == after["qwonnx_requests_waiting"] == 0
    assert any(name.startswith("qwonnx_info{artifact=") and f"model={MODEL}" in name for name in after)


def test_while_the_model_loads_they_say_so_and_an_odd_name_is_escaped(counting_folder: Path) -> None:
    app = create_app(ModelHost(lambda: Engine.open(counting_folder)))
    assert samples(ask(app, "GET", "/metrics").text) == {"qwonnx_ready": 0}
    host = ModelHost(lambda: Engine.open(counting_folder), model_names=('a "b"\\\n',))
    host.wait()
    text = ask(create_app(host), "GET", "/metrics").text
    host.close()
    assert any('model=a "b"\\\n' in name for name in samples(text))


@pytest.mark.parametrize(("is_open", "status"), [(False, 401), (True, 200)])
def test_they_need_a_key_where_there_are_keys_unless_they_are_opened(
    counting_folder: Path, is_open: bool, status: int
) -> None:
    settings = ServerSettings(api_key="secret", open_metrics=is_open)
    app = create_app(ModelHost(lambda: Engine.open(counting_folder)), settings)
    assert ask(app, "GET", "/metrics").status_code == status
    assert ask(app, "GET", "/metrics", headers={"authorization": "Bearer secret"}).status_code == 200
    assert ask(app, "GET", "/health/live").status_code == 200


def test_labels_are_routes_and_known_words_whatever_clients_ask_for(counting_folder: Path) -> None:
    with serving(counting_folder) as served, served.http() as client:
        for number in range(20):
            client.get(f"/nothing/{number}")
            client.get(f"/v1/models/{number}")
            client.request(f"WORD{number}", "/v1/models")
        found = read(served)
    requests = {name for name in found if name.startswith("qwonnx_http_requests_total")}
    assert requests == {
        "qwonnx_http_requests_total{endpoint=other,method=GET,status=404}",
        "qwonnx_http_requests_total{endpoint=/v1/models/{model:path},method=GET,status=404}",
        "qwonnx_http_requests_total{endpoint=/v1/models,method=other,status=405}",
    }


def test_keys_are_counted_by_their_names(counting_folder: Path) -> None:
    settings = ServerSettings(api_key="secret", open_metrics=True, shutdown_seconds=0.5)
    with serving(counting_folder, settings=settings) as served:
        with served.client("secret") as client:
            answer = client.chat.completions.create(model=MODEL, messages=chat("How many?"), max_tokens=5)
        assert post(served) == 401
        found = read(served)
    assert answer.usage is not None
    assert found["qwonnx_key_requests_total{key=default}"] == 1
    assert found["qwonnx_key_tokens_total{key=default,kind=prompt}"] == answer.usage.prompt_tokens
    assert found["qwonnx_key_tokens_total{key=default,kind=generated}"] == 5
    assert found["qwonnx_http_requests_total{endpoint=other,method=POST,status=401}"] == 1


def test_vllms_names_have_the_same_numbers(counting_folder: Path) -> None:
    settings = ServerSettings(metrics_names="vllm", shutdown_seconds=0.5)
    with serving(counting_folder, settings=settings) as served:
        assert post(served) == 200
        text = httpx.get(f"{served.url}/metrics", trust_env=False).text
    found = samples(text, ("qwonnx_", "vllm:"))
    labels = f"{{engine=0,model_name={MODEL}}}"
    pairs = {
        "num_requests_running": "requests_running",
        "num_requests_waiting": "requests_waiting",
        "prompt_tokens_total": "prompt_tokens_total",
        "generation_tokens_total": "generated_tokens_total",
        "prefix_cache_hits_total": "cached_tokens_total",
        "num_preemptions_total": "preemptions_total",
        "time_to_first_token_seconds_sum": "time_to_first_token_seconds_sum",
        "inter_token_latency_seconds_count": "between_tokens_seconds_count",
        "e2e_request_latency_seconds_sum": "request_seconds_sum",
        "request_queue_time_seconds_count": "queue_seconds_count",
    }
    for theirs, ours in pairs.items():
        assert found[f"vllm:{theirs}{labels}"] == found[f"qwonnx_{ours}"], theirs
    length = f"vllm:request_success_total{{engine=0,finished_reason=length,model_name={MODEL}}}"
    assert found[length] == found["qwonnx_requests_finished_total{reason=length}"]
    assert 0 <= found[f"vllm:kv_cache_usage_perc{labels}"] <= 1


def test_guides_and_parser_fallbacks_are_counted(counting_folder: Path) -> None:
    with serving(counting_folder) as served:
        before = read(served)
        schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [1, 2]}}}
        assert post(served, response_format=schema) == 200
        assert post(served, response_format=schema) == 200  # kept, and not compiled again
        assert post(served, structured_outputs={"regex": "("}) == 400
        PARSER_FALLBACKS.add()
        after = read(served)
    count = "qwonnx_guide_compile_seconds_count"
    assert after[count] - before[count] == 2
    assert after["qwonnx_guide_compile_seconds_sum"] > 0
    assert after["qwonnx_parser_fallbacks_total"] - before["qwonnx_parser_fallbacks_total"] == 1
