"""Spans and metrics, collected by OpenTelemetry's own SDK: what they have, and that no content is among it."""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from qwonnx.handlers import app as application
from qwonnx.handlers.http import otel
from qwonnx.handlers.http.finished_request import FinishedRequest
from qwonnx.handlers.http.meter import Usage
from qwonnx.handlers.http.otel import Telemetry, telemetry_of
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.errors import SettingsError
from tests.handlers.serving import MODEL, Served, serving

pytestmark = pytest.mark.fast

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collected:
    """Telemetry into memory."""

    def __init__(self) -> None:
        self.spans, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.telemetry = Telemetry(tracers, meters, lambda: MODEL, owns=True)

    def metrics(self) -> dict[str, Any]:
        """Data points by the name of their metric."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        found = [
            metric for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
        ]
        assert {metric.unit for metric in found} == {"s"}
        return {metric.name: list(metric.data.data_points) for metric in found}


@contextmanager
def collected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Served, Collected]]:
    into = Collected()
    monkeypatch.setattr(application, "_telemetry", lambda *arguments: into.telemetry)
    settings = ServerSettings(api_key="secret-canary", shutdown_seconds=0.5)
    with serving(folder, settings=settings) as served:
        yield served, into


def test_a_request_is_a_span_with_tokens_and_times_and_without_content(
    counting_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "content-canary"}], "max_tokens": 6}
    with collected(counting_folder, monkeypatch) as (served, into), served.http() as client:
        client.headers = {"authorization": "Bearer secret-canary", "traceparent": f"00-{TRACE}-{PARENT}-01"}
        for streams in (False, True):
            answer = client.post("/v1/chat/completions?query-canary", json={**body, "stream": streams})
            assert answer.status_code == 200
        client.get("/health/live")
        client.get("/v1/models")
        client.post("/nothing-canary", json={})
        assert client.post("/v1/chat/completions", json={**body, "model": "model-canary"}).status_code == 404
    whole, streamed, refused = into.spans.get_finished_spans()
    for span in (whole, streamed):
        assert span.name == "POST /v1/chat/completions"
        assert span.parent is not None
        assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
        attributes = dict(span.attributes or {})
        assert attributes.pop("gen_ai.usage.input_tokens", 0) > 0  # type: ignore[operator]
        attributes.pop("qwonnx.usage.cached_tokens")
        assert attributes == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "qwonnx",
            "gen_ai.response.model": MODEL,
            "http.request.method": "POST",
            "http.route": "/v1/chat/completions",
            "http.response.status_code": 200,
            "qwonnx.key": "default",
            "gen_ai.usage.output_tokens": 6,
        }
        (event,) = span.events
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time < event.timestamp <= span.end_time
    assert dict(refused.attributes or {})["http.response.status_code"] == 404
    assert refused.status.is_ok
    points = into.metrics()
    assert set(points) == {
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
    }
    assert all([point.count for point in each] == [2] for each in points.values())
    said = f"{[span.to_json() for span in into.spans.get_finished_spans()]}{points}"
    assert "canary" not in said


def test_a_failure_has_its_kind_and_a_cut_answer_too() -> None:
    into = Collected()
    for status in (503, None, 200):
        finished = FinishedRequest("/v1/completions", "POST", status, 0.5, "", Usage(), None, None, "nonsense")
        into.telemetry.observe(finished)
    kinds = [dict(span.attributes or {}).get("error.type") for span in into.spans.get_finished_spans()]
    assert kinds == ["503", "cut_off", None]
    assert all(span.parent is None for span in into.spans.get_finished_spans())
    durations = into.metrics()["gen_ai.server.request.duration"]
    assert {point.attributes["error.type"] for point in durations} == {"503", "cut_off"}
    assert {point.attributes["gen_ai.operation.name"] for point in durations} == {"text_completion"}


def test_nothing_is_made_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "_made", lambda model: pytest.fail("made"))
    assert telemetry_of(ServerSettings(), {}, lambda: None) is None
    assert telemetry_of(ServerSettings(), {"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, lambda: None) is None
    disabled = {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}
    assert telemetry_of(ServerSettings(telemetry=True), disabled, lambda: None) is None


def test_without_the_sdk_the_setting_says_what_to_install_and_a_variable_warns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.metrics", None)
    with pytest.raises(SettingsError, match=r"opentelemetry\.sdk\.metrics.*otel"):
        telemetry_of(ServerSettings(telemetry=True), {}, lambda: None)
    asked = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318"}
    assert telemetry_of(ServerSettings(), asked, lambda: None) is None
    assert "no telemetry is sent" in caplog.text


def test_what_is_left_is_sent_to_the_collector_when_the_server_stops(
    counting_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[str] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            got.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

        with serving(counting_folder) as served, served.http() as client:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        collector.shutdown()
    assert sorted(got) == ["/v1/metrics", "/v1/traces"]
