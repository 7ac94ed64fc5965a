"""GET /metrics: the engine's totals, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers.http.prometheus_text import head, histogram, line, page, value
from qwonnx.handlers.http.request_totals import RequestTotals
from qwonnx.handlers.model_host import HostStatus, ModelHost
from qwonnx.handlers.settings import MetricsNames, ServerSettings
from qwonnx.runtime.engine.metrics import MetricsSnapshot
from qwonnx.runtime.text.parser_fallbacks import PARSER_FALLBACKS


async def metrics(request: Request) -> Response:
    """200, also while the model loads: then only qwonnx_ready and what is zero."""
    host: ModelHost = request.app.state.host
    lines = list(_of_host(host))
    if (snapshot := host.metrics()) is not None:
        lines += _of_engine(snapshot)
        settings: ServerSettings = request.app.state.settings
        if settings.metrics_names == MetricsNames.VLLM:
            from qwonnx.handlers.http import vllm_names  # few ask for them

            lines += vllm_names.lines(snapshot, host.model_names()[0])
    totals: RequestTotals = request.app.state.totals
    lines += _of_requests(totals)
    return page(lines)


def _of_host(host: ModelHost) -> Iterator[str]:
    yield from value("ready", "gauge", "1 if the model answers.", int(host.status is HostStatus.READY))
    if host.fingerprint:
        labels = {"model": host.model_names()[0], "artifact": host.fingerprint.removeprefix("fp_")}
        yield from value("info", "gauge", "The model that is served.", 1, labels)


def _of_engine(snapshot: MetricsSnapshot) -> Iterator[str]:
    yield from value("requests_running", "gauge", "Requests with a row of the engine.", snapshot.num_running)
    yield from value("requests_waiting", "gauge", "Requests that wait for a row.", snapshot.num_waiting)
    yield from value("rows_max", "gauge", "Limit of qwonnx_requests_running.", snapshot.max_rows)
    yield from value("cache_bytes", "gauge", "Bytes of states of running requests.", snapshot.cache_bytes)
    yield from value("cache_max_bytes", "gauge", "Limit of qwonnx_cache_bytes.", snapshot.max_cache_bytes)
    kept, limit = snapshot.prefix_cache_bytes, snapshot.max_prefix_cache_bytes
    yield from value("prefix_cache_bytes", "gauge", "Bytes of kept beginnings of prompts.", kept)
    yield from value("prefix_cache_max_bytes", "gauge", "Limit of qwonnx_prefix_cache_bytes.", limit)
    yield from head("requests_finished_total", "counter", "Requests that ended, by reason.")
    for reason, count in snapshot.finished.items():
        yield line("requests_finished_total", count, {"reason": reason.value})
    yield from value("prompt_tokens_total", "counter", "Tokens of prompts that began.", snapshot.prompt_tokens)
    text = "Tokens of prompts whose states were found, not computed."
    yield from value("cached_tokens_total", "counter", text, snapshot.cached_tokens)
    yield from value("generated_tokens_total", "counter", "Tokens sampled.", snapshot.generated_tokens)
    yield from value("preemptions_total", "counter", "Rows taken from running requests.", snapshot.preemptions)
    yield from value("failed_steps_total", "counter", "Steps of the model that failed.", snapshot.failed_steps)
    experts = snapshot.experts
    yield from value("experts_bytes", "gauge", "Bytes of experts in memory.", experts.resident_bytes)
    yield from value("experts_read_total", "counter", "Experts read from their file.", experts.read)
    if (adapters := snapshot.adapters) is not None:
        yield from value("adapters_loaded", "gauge", "Adapters in slots.", len(adapters.resident))
        yield from value("adapters_max", "gauge", "Limit of qwonnx_adapters_loaded.", adapters.num_slots)
        yield from value("adapter_loads_total", "counter", "Adapters written into slots.", adapters.num_loads)
        text = "Adapters that left their slot for another one."
        yield from value("adapter_evictions_total", "counter", text, adapters.num_evictions)
    yield from histogram("queue_seconds", "From a request's arrival to its first step.", snapshot.queue_seconds)
    text = "From a request's arrival to its first token."
    yield from histogram("time_to_first_token_seconds", text, snapshot.first_token_seconds)
    text = "Mean time of a token after the first, for each request."
    yield from histogram("time_per_output_token_seconds", text, snapshot.seconds_per_token)
    text = "Time between two tokens of a request, for each token."
    yield from histogram("between_tokens_seconds", text, snapshot.between_tokens_seconds)
    text = "From a request's arrival at the engine to its last token."
    yield from histogram("request_seconds", text, snapshot.request_seconds)
    text = "Time to check and compile a guide, from its first request on; refused ones too."
    yield from histogram("guide_compile_seconds", text, snapshot.compile_seconds)
    text = "Texts that looked like a tool call and were given as text."
    yield from value("parser_fallbacks_total", "counter", text, PARSER_FALLBACKS.total)
    yield from histogram("decoding_rows", "Rows of each decoding step.", snapshot.decoding_rows)


def _of_requests(totals: RequestTotals) -> Iterator[str]:
    if totals.requests:
        yield from head("http_requests_total", "counter", "Requests that ended; 499: the client left.")
    for (endpoint, method, status), count in sorted(totals.requests.items()):
        labels = {"endpoint": endpoint, "method": method, "status": status}
        yield line("http_requests_total", count, labels)
    if totals.seconds:
        yield from head("http_request_seconds", "histogram", "From a request's arrival to its answer's end.")
    for endpoint, seconds in sorted(totals.seconds.items()):
        yield from histogram("http_request_seconds", "", seconds.snapshot(), {"endpoint": endpoint})
    if totals.of_keys:
        yield from head("key_requests_total", "counter", "Requests that ended, by the name of their key.")
    for name, counts in sorted(totals.of_keys.items()):
        yield line("key_requests_total", counts["requests"], {"key": name})
    if totals.of_keys:
        yield from head("key_tokens_total", "counter", "Tokens that requests of a key used.")
    for name, counts in sorted(totals.of_keys.items()):
        for kind in ("prompt", "generated"):
            yield line("key_tokens_total", counts[kind], {"key": name, "kind": kind})
