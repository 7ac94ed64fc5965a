"""The engine's numbers under the names that vLLM gives them, so that dashboards made for it show this server.

Only what means the same has a line. Names: https://docs.vllm.ai/en/latest/usage/metrics.html.
"""

from __future__ import annotations

from collections.abc import Iterator

from qwonnx.handlers.http.prometheus_text import head, histogram, line, value
from qwonnx.runtime.engine.metrics import MetricsSnapshot
from qwonnx.runtime.engine.request import FinishReason

_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.ABORT: "abort"}


def lines(snapshot: MetricsSnapshot, model: str) -> Iterator[str]:
    """In Prometheus' format.

    Args:
        snapshot: of the engine.
        model: the name of the label model_name.
    """
    labels = {"model_name": model, "engine": "0"}
    for name, meaning, number in (
        ("num_requests_running", "Requests with a row of the engine.", snapshot.num_running),
        ("num_requests_waiting", "Requests that wait for a row.", snapshot.num_waiting),
        ("kv_cache_usage_perc", "Share of the memory for states that is in use, 0 to 1.", _share(snapshot)),
    ):
        yield from value(f"vllm:{name}", "gauge", meaning, number, labels)
    for name, meaning, number in (
        ("prompt_tokens_total", "Tokens of prompts that began.", snapshot.prompt_tokens),
        ("generation_tokens_total", "Tokens sampled.", snapshot.generated_tokens),
        ("prefix_cache_queries_total", "Tokens of prompts that began.", snapshot.prompt_tokens),
        ("prefix_cache_hits_total", "Tokens of prompts whose states were found.", snapshot.cached_tokens),
        ("num_preemptions_total", "Rows taken from running requests.", snapshot.preemptions),
    ):
        yield from value(f"vllm:{name}", "counter", meaning, number, labels)
    yield from head("vllm:request_success_total", "counter", "Requests that ended, by reason.")
    for reason, told in _REASONS.items():
        yield line("vllm:request_success_total", snapshot.finished[reason], {**labels, "finished_reason": told})
    for name, meaning, counted in (
        ("time_to_first_token_seconds", "From arrival to the first token.", snapshot.first_token_seconds),
        ("inter_token_latency_seconds", "Between two tokens of a request.", snapshot.between_tokens_seconds),
        ("request_time_per_output_token_seconds", "Mean of each request.", snapshot.seconds_per_token),
        ("e2e_request_latency_seconds", "From arrival to the last token.", snapshot.request_seconds),
        ("request_queue_time_seconds", "From arrival to the first step.", snapshot.queue_seconds),
    ):
        yield from histogram(f"vllm:{name}", meaning, counted, labels)


def _share(snapshot: MetricsSnapshot) -> float:
    return snapshot.cache_bytes / snapshot.max_cache_bytes if snapshot.max_cache_bytes else 0.0
