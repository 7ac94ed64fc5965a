"""Spans and metrics for OpenTelemetry, one span a request that posts, after its end: nothing waits for them.

The names are those of the semantic conventions for generative AI on servers. A span has the route, the status, tokens
and times; it never has a word of a conversation, a path as it was sent, or a name that the client chose. Its parent is
the span of the client's `traceparent`.

Nothing is imported and nothing is sent unless the settings or OTEL_EXPORTER_OTLP_* variables ask for it. A program that
has set providers of its own, as `opentelemetry-instrument` does, keeps them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from qwonnx.handlers.http.finished_request import OTHER, FinishedRequest
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.install import how_to_install

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

logger = logging.getLogger(__name__)

_NAME = "qwonnx"
_ASKED_BY = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
_DISABLED = "OTEL_SDK_DISABLED"
_CLOSING_SECONDS = 2.0  # a collector that does not answer must not hold a server that stops
# The bounds that the conventions advise, in seconds.
_DURATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_TOKENS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_EACH_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


class Telemetry:
    """Observes requests that have ended.

    Args:
        tracers, meters: of the program, or made by telemetry_of().
        model: the served model's name, once it is known; None before.
        owns: whether close() ends the providers.
    """

    def __init__(
        self, tracers: TracerProvider, meters: MeterProvider, model: Callable[[], str | None], *, owns: bool = False
    ) -> None:
        self._providers: tuple[Any, ...] = (tracers, meters) if owns else ()
        self._tracer = tracers.get_tracer(_NAME)
        self._model = model
        meter = meters.get_meter(_NAME)
        self._duration, self._first, self._each = (
            meter.create_histogram(f"gen_ai.server.{name}", "s", text, explicit_bucket_boundaries_advisory=list(bounds))
            for name, text, bounds in (
                ("request.duration", "From a request's arrival to its answer's end.", _DURATIONS),
                ("time_to_first_token", "From a request's arrival to its first token.", _FIRST_TOKENS),
                ("time_per_output_token", "Mean time of a token after the first.", _EACH_TOKEN),
            )
        )

    def observe(self, finished: FinishedRequest) -> None:
        """Record a request. Those that only read are not recorded, and neither are those of no route."""
        if finished.method != "POST" or finished.endpoint == OTHER:
            return
        common: dict[str, Any] = {"gen_ai.operation.name": _operation(finished.endpoint), "gen_ai.provider.name": _NAME}
        model = self._model()
        if model is not None:
            common["gen_ai.response.model"] = model
        if finished.status is None or finished.status >= 500:
            common["error.type"] = str(finished.status or "cut_off")
        if finished.usage.total_tokens or "error.type" in common:
            self._duration.record(finished.seconds, common)
        if finished.first_token_seconds is not None:
            self._first.record(finished.first_token_seconds, common)
        if finished.seconds_per_token is not None:
            self._each.record(finished.seconds_per_token, common)
        self._trace(finished, common)

    def close(self) -> None:
        """Send what is left, as far as the time for it allows. Blocks for two seconds at most."""
        threads = [threading.Thread(target=each.shutdown, daemon=True) for each in self._providers]
        for thread in threads:
            thread.start()
        end = time.monotonic() + _CLOSING_SECONDS
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _trace(self, finished: FinishedRequest, common: Mapping[str, Any]) -> None:
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        ended = time.time_ns()
        began = ended - round(finished.seconds * 1e9)
        attributes: dict[str, Any] = {
            **common,
            "http.request.method": finished.method,
            "http.route": finished.endpoint,
        }
        if finished.status is not None:
            attributes["http.response.status_code"] = finished.status
        if finished.key_name:
            attributes["qwonnx.key"] = finished.key_name
        usage = finished.usage
        if usage.total_tokens:
            attributes["gen_ai.usage.input_tokens"] = usage.prompt_tokens
            attributes["gen_ai.usage.output_tokens"] = usage.generated_tokens
            attributes["qwonnx.usage.cached_tokens"] = usage.cached_tokens
        parent = TraceContextTextMapPropagator().extract({"traceparent": finished.trace_parent})
        span = self._tracer.start_span(
            f"POST {finished.endpoint}", parent, SpanKind.SERVER, attributes=attributes, start_time=began
        )
        if finished.first_token_seconds is not None:
            span.add_event("first_token", timestamp=began + round(finished.first_token_seconds * 1e9))
        if "error.type" in common:
            span.set_status(StatusCode.ERROR)
        span.end(ended)


def telemetry_of(
    settings: ServerSettings, environment: Mapping[str, str], model: Callable[[], str | None]
) -> Telemetry | None:
    """What the settings or the variables ask for; None if neither does.

    Raises:
        SettingsError: the settings do, and the SDK or its exporter is not installed.
    """
    if environment.get(_DISABLED, "").strip().lower() == "true":
        return None
    if not settings.telemetry and not any(environment.get(name, "").strip() for name in _ASKED_BY):
        return None
    try:
        return _made(model)
    except ImportError as error:
        message = f"telemetry needs {error.name}: {how_to_install('otel')}"
        if settings.telemetry:
            raise SettingsError(message) from error
        logger.warning("no telemetry is sent, although a variable OTEL_EXPORTER_OTLP_* is set: %s", message)
        return None


def _made(model: Callable[[], str | None]) -> Telemetry:
    """With the program's own providers, or new ones that send to the place that OTEL_EXPORTER_OTLP_* names."""
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider

    tracers, meters = trace.get_tracer_provider(), metrics.get_meter_provider()
    if isinstance(tracers, TracerProvider) and isinstance(meters, MeterProvider):
        return Telemetry(tracers, meters, model)

    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()  # by OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: _NAME}))
    # Their own hooks at the process's end would wait for a collector for half a minute.
    own = TracerProvider(resource=resource, shutdown_on_exit=False)
    own.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    return Telemetry(own, MeterProvider([reader], resource, shutdown_on_exit=False), model, owns=True)


def _operation(endpoint: str) -> str:
    return "text_completion" if endpoint.endswith("/v1/completions") else "chat"
