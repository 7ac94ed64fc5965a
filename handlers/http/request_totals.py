"""Totals of the requests that an application has answered, for GET /metrics. The event loop's thread counts."""

from __future__ import annotations

from collections import Counter

from qwonnx.handlers.http.finished_request import FinishedRequest
from qwonnx.runtime.engine.metrics import SECONDS, Histogram


class RequestTotals:
    """Of one application. Its labels are bounded: routes, methods, status codes, and names of keys.

    requests: by endpoint, method and status.
    seconds: of requests, by endpoint.
    of_keys: by the key's name: requests, and tokens by kind (prompt, generated).
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.seconds: dict[str, Histogram] = {}
        self.of_keys: dict[str, Counter[str]] = {}

    def observe(self, finished: FinishedRequest) -> None:
        """Count a request that has ended."""
        status = "none" if finished.status is None else str(finished.status)
        self.requests[finished.endpoint, finished.method, status] += 1
        self.seconds.setdefault(finished.endpoint, Histogram(SECONDS)).observe(finished.seconds)
        if finished.key_name:
            totals = self.of_keys.setdefault(finished.key_name, Counter())
            totals["requests"] += 1
            totals["prompt"] += finished.usage.prompt_tokens
            totals["generated"] += finished.usage.generated_tokens
