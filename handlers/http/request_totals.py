"""Totals of the requests that an application has answered, for GET /metrics. The event loop's thread counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from qwonnx.handlers.http.finished_request import FinishedRequest
from qwonnx.handlers.http.prometheus_text import head, histogram, line
from qwonnx.runtime.engine.metrics import SECONDS, Histogram


class RequestTotals:
    """Of one application. Its labels are bounded: routes, methods, status codes, and names of keys."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, str]] = Counter()  # by endpoint, method, status
        self._seconds: dict[str, Histogram] = {}  # by endpoint
        self._of_keys: dict[str, Counter[str]] = {}  # by name: requests, and tokens by kind

    def observe(self, finished: FinishedRequest) -> None:
        """Count a request that has ended."""
        status = "none" if finished.status is None else str(finished.status)
        self._requests[finished.endpoint, finished.method, status] += 1
        self._seconds.setdefault(finished.endpoint, Histogram(SECONDS)).observe(finished.seconds)
        if finished.key_name:
            totals = self._of_keys.setdefault(finished.key_name, Counter())
            totals["requests"] += 1
            totals["prompt"] += finished.usage.prompt_tokens
            totals["generated"] += finished.usage.generated_tokens

    def lines(self) -> Iterator[str]:
        """In Prometheus' format."""
        if self._requests:
            yield from head("http_requests_total", "counter", "Requests that ended; 499: the client left.")
        for (endpoint, method, status), count in sorted(self._requests.items()):
            labels = {"endpoint": endpoint, "method": method, "status": status}
            yield line("http_requests_total", count, labels)
        if self._seconds:
            yield from head("http_request_seconds", "histogram", "From a request's arrival to its answer's end.")
        for endpoint, seconds in sorted(self._seconds.items()):
            yield from histogram("http_request_seconds", "", seconds.snapshot(), {"endpoint": endpoint})
        if self._of_keys:
            yield from head("key_requests_total", "counter", "Requests that ended, by the name of their key.")
        for name, totals in sorted(self._of_keys.items()):
            yield line("key_requests_total", totals["requests"], {"key": name})
        if self._of_keys:
            yield from head("key_tokens_total", "counter", "Tokens that requests of a key used.")
        for name, totals in sorted(self._of_keys.items()):
            for kind in ("prompt", "generated"):
                yield line("key_tokens_total", totals[kind], {"key": name, "kind": kind})
