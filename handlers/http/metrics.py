"""GET /metrics: the engine's totals as Prometheus' text, version 0.0.4.

No library: the engine counts already, and the format is lines. A test reads them with Prometheus' own parser.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers.model_host import HostStatus, ModelHost
from qwonnx.runtime.engine.metrics import HistogramSnapshot, MetricsSnapshot

PATH = "/metrics"
_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def metrics(request: Request) -> Response:
    """200, also while the model loads: then only qwonnx_ready and what is zero."""
    host: ModelHost = request.app.state.host
    lines = list(_of_host(host))
    if (snapshot := host.metrics()) is not None:
        lines += _of_engine(snapshot)
    text = "\n".join([*lines, ""])
    return Response(text, headers={"content-type": _MEDIA_TYPE, "cache-control": "no-store"})


def _of_host(host: ModelHost) -> Iterator[str]:
    yield from _value("ready", "gauge", "1 if the model answers.", int(host.status is HostStatus.READY))
    if host.fingerprint:
        labels = {"model": host.model_name(), "artifact": host.fingerprint.removeprefix("fp_")}
        yield from _value("info", "gauge", "The model that is served.", 1, labels)


def _of_engine(snapshot: MetricsSnapshot) -> Iterator[str]:
    yield from _value("requests_running", "gauge", "Requests with a row of the engine.", snapshot.num_running)
    yield from _value("requests_waiting", "gauge", "Requests that wait for a row.", snapshot.num_waiting)
    yield from _value("cache_bytes", "gauge", "Bytes of states of running requests.", snapshot.cache_bytes)
    yield from _value("cache_max_bytes", "gauge", "Limit of qwonnx_cache_bytes.", snapshot.max_cache_bytes)
    yield from _head("requests_finished_total", "counter", "Requests that ended, by reason.")
    for reason, count in snapshot.finished.items():
        yield _line("requests_finished_total", count, {"reason": reason.value})
    yield from _value("prompt_tokens_total", "counter", "Tokens of prompts that began.", snapshot.prompt_tokens)
    text = "Tokens of prompts whose states were found, not computed."
    yield from _value("cached_tokens_total", "counter", text, snapshot.cached_tokens)
    yield from _value("generated_tokens_total", "counter", "Tokens sampled.", snapshot.generated_tokens)
    yield from _value("preemptions_total", "counter", "Rows taken from running requests.", snapshot.preemptions)
    yield from _value("failed_steps_total", "counter", "Steps of the model that failed.", snapshot.failed_steps)
    experts = snapshot.experts
    yield from _value("experts_bytes", "gauge", "Bytes of experts in memory.", experts.resident_bytes)
    yield from _value("experts_read_total", "counter", "Experts read from their file.", experts.read)
    yield from _histogram("queue_seconds", "From a request's arrival to its first step.", snapshot.queue_seconds)
    text = "From a request's arrival to its first token."
    yield from _histogram("time_to_first_token_seconds", text, snapshot.first_token_seconds)
    text = "Mean time of a token after the first, for each request."
    yield from _histogram("time_per_output_token_seconds", text, snapshot.seconds_per_token)
    yield from _histogram("decoding_rows", "Rows of each decoding step.", snapshot.decoding_rows)


def _value(name: str, kind: str, meaning: str, value: float, labels: Mapping[str, str] | None = None) -> Iterator[str]:
    yield from _head(name, kind, meaning)
    yield _line(name, value, labels or {})


def _histogram(name: str, meaning: str, histogram: HistogramSnapshot) -> Iterator[str]:
    yield from _head(name, "histogram", meaning)
    count = 0
    for bound, here in zip((*(f"{bound:g}" for bound in histogram.bounds), "+Inf"), histogram.counts, strict=True):
        count += here
        yield _line(f"{name}_bucket", count, {"le": bound})
    yield _line(f"{name}_sum", histogram.total, {})
    yield _line(f"{name}_count", count, {})


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP qwonnx_{name} {meaning}"
    yield f"# TYPE qwonnx_{name} {kind}"


def _line(name: str, value: float, labels: Mapping[str, str]) -> str:
    written = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"qwonnx_{name}{f'{{{written}}}' if written else ''} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
