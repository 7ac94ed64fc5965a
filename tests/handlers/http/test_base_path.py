"""A base path is removed before keys and routes see a path; paths without it are served, too."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from qwonnx.handlers.app import create_app
from qwonnx.handlers.http.base_path import BasePath
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import SettingsError
from tests.handlers.fakes import ask

pytestmark = pytest.mark.fast


async def _tell(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse([scope["path"], scope["raw_path"].decode()])(scope, receive, send)


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("/prod/v1/models", "/v1/models"),
        ("/v1/models", "/v1/models"),
        ("/prod", "/"),
        ("/prod/", "/"),
        ("/product/v1", "/product/v1"),
        ("/prod/prod/v1", "/prod/v1"),
    ],
)
def test_it_is_removed_once_where_it_is_whole(path: str, seen: str) -> None:
    assert ask(BasePath(_tell, base_path_of=lambda scope: "/prod"), "GET", path).json()[0] == seen


def test_a_path_behind_it_needs_the_key_as_well() -> None:
    app = create_app(ModelHost(_never), ServerSettings(base_path="/prod", api_key="s3cret"))
    for path in ("/prod/v1/models", "/v1/models"):
        assert ask(app, "GET", path).status_code == 401
        assert ask(app, "GET", path, headers={"authorization": "Bearer s3cret"}).status_code == 503  # it is not loaded
    assert ask(app, "GET", "/prod/health/live").status_code == 200


@pytest.mark.parametrize("base_path", ["", "/", "prod", "/prod/", "//prod", "/a b", "/a/../b?", "/a" * 9])
def test_another_path_is_refused(base_path: str) -> None:
    with pytest.raises(SettingsError, match="base_path"):
        ServerSettings(base_path=base_path)


def _never() -> Engine:
    raise AssertionError("it is not loaded")


@pytest.mark.parametrize("path", ["/outer/v1/models", "/outer/v1/nothing", "/outer/outer/v1/models"])
@pytest.mark.parametrize("wrap", ["mount", "root_path"])
def test_a_mounted_application_needs_the_key_as_well(wrap: str, path: str) -> None:
    app = create_app(ModelHost(_never), ServerSettings(api_key="s3cret"))
    outer: ASGIApp = Starlette(routes=[Mount("/outer", app=app)])
    if wrap == "root_path":  # as servers do that are told of a proxy

        async def outer(scope: Scope, receive: Receive, send: Send) -> None:
            await app(dict(scope, root_path="/outer"), receive, send)

    refused = ask(outer, "GET", path)
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert ask(outer, "GET", "/outer/health/live").status_code == 200


def test_a_server_that_does_not_repeat_its_root_path_is_understood() -> None:
    app = create_app(ModelHost(_never), ServerSettings(api_key="s3cret"))

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        await app(dict(scope, root_path="/v1"), receive, send)

    assert ask(outer, "GET", "/v1/v1/models").status_code == 401
    assert ask(outer, "GET", "/health/live").status_code == 200
