"""What a server says of itself: its root, its version, and its health under the short name."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from qwonnx.handlers.app import create_app
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from tests.handlers.fakes import ask
from tests.handlers.serving import Served

pytestmark = pytest.mark.fast


def _installed() -> str:
    try:
        return version("qwonnx")
    except PackageNotFoundError:
        return "unknown"


def test_the_root_tells_name_version_and_routes_and_can_be_probed(served: Served) -> None:
    with served.http() as client:
        told = client.get("/").json()
        probed = client.head("/")
        assert client.get("/version").json() == {"version": _installed()}
        assert client.post("/", json={}).status_code == 405
    assert (told["name"], told["version"]) == ("qwonnx", _installed())
    assert {"/v1/chat/completions", "/tokenize", "/detokenize", "/health", "/metrics", "/version"} <= {*told["routes"]}
    assert (probed.status_code, probed.content) == (200, b"")


def test_health_is_the_models_and_needs_no_key_but_the_rest_does(counting_folder: Path, served: Served) -> None:
    with served.http() as client:
        assert client.get("/health").json() == client.get("/health/ready").json() == {"status": "ready"}
    app = create_app(ModelHost(lambda: Engine.open(counting_folder)), ServerSettings(api_key="secret"))
    assert ask(app, "GET", "/health").status_code == 503
    for path in ("/", "/version"):
        assert ask(app, "GET", path).status_code == 401
        assert ask(app, "GET", path, headers={"authorization": "Bearer secret"}).status_code == 200
    assert ask(app, "HEAD", "/").status_code == 401
