"""Health: alive from the first moment, ready only while the model answers; never cached."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from qwonnx.handlers.http import health
from qwonnx.handlers.model_host import HostStatus
from tests.handlers.fakes import ask

pytestmark = pytest.mark.fast


def app(status: HostStatus) -> Starlette:
    made = Starlette(routes=[Route("/live", health.live), Route("/ready", health.ready)])
    made.state.host = SimpleNamespace(status=status)
    return made


@pytest.mark.parametrize("status", HostStatus)
def test_only_a_ready_host_is_ready_and_every_one_is_alive(status: HostStatus) -> None:
    ready = ask(app(status), "GET", "/ready")
    assert (ready.status_code, ready.json()) == (200 if status is HostStatus.READY else 503, {"status": status.value})
    live = ask(app(status), "GET", "/live")
    assert (live.status_code, live.json()) == (200, {"status": "live"})
    assert {answer.headers["cache-control"] for answer in (ready, live)} == {"no-store"}
