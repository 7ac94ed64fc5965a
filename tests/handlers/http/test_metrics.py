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
from tests.handlers.fakes import ask
from tests.handlers.serving import MODEL, Served, chat, serving

pytestmark = pytest.mark.fast


def samples(text: str) -> dict[str, float]:
    """By name and labels; every family has a type and a meaning, and our prefix."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        assert family.name.startswith("qwonnx_")
        assert family.documentation
        assert family.type in ("gauge", "counter", "histogram")
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in found
            found[key] = sample.value
    return found


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
