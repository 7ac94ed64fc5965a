"""A base path is removed before keys and routes see a path; paths without it are served, too."""

from __future__ import annotations

import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from qwonnx.handlers.app import create_app
from qwonnx.handlers.http.base_path import BasePath
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings
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
    def never() -> None:
        raise AssertionError

    app = create_app(ModelHost(never), ServerSettings(base_path="/prod", api_key="s3cret"))  # type: ignore[arg-type]
    for path in ("/prod/v1/models", "/v1/models"):
        assert ask(app, "GET", path).status_code == 401
        assert ask(app, "GET", path, headers={"authorization": "Bearer s3cret"}).status_code == 503  # it is not loaded
    assert ask(app, "GET", "/prod/health/live").status_code == 200


@pytest.mark.parametrize("base_path", ["", "/", "prod", "/prod/", "//prod", "/a b", "/a/../b?", "/a" * 9])
def test_another_path_is_refused(base_path: str) -> None:
    with pytest.raises(SettingsError, match="base_path"):
        ServerSettings(base_path=base_path)
