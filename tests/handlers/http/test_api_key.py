"""The key: on every path but open ones, in any header that the path's clients use."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http.api import Api, Apis
from qwonnx.handlers.http.api_key import RequireApiKey, name_of, owner_of
from qwonnx.handlers.http.api_keys import KeyRing
from qwonnx.handlers.settings import ServerSettings
from tests.handlers.fakes import ask

pytestmark = pytest.mark.fast


def _speak(error: ServiceError) -> Response:
    return PlainTextResponse(f"{error.kind.value}: {error.code}", error.status, error.headers)


APIS = Apis([Api("/v1", (), _speak, ""), Api("/v1/other", (), _speak, "", key_headers=("x-api-key",))])
RING = KeyRing(ServerSettings(api_key="s3cret"))
APP = RequireApiKey(
    PlainTextResponse("inside"), ring=RING, apis=APIS, open_paths=["/health/ready"], open_prefix="/hooks"
)


def status(path: str, **headers: str) -> int:
    return ask(APP, "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()}).status_code


@pytest.mark.parametrize("given", ["Bearer s3cret", "bearer s3cret", "BEARER s3cret", "Bearer   s3cret"])
def test_the_key_lets_in(given: str) -> None:
    assert status("/v1/models", authorization=given) == 200


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "s3cret", "Basic s3cret", "Bearer s3cre", "Bearer s3crets", "Bearer S3CRET"]
)
def test_anything_else_does_not(given: str) -> None:
    answer = ask(APP, "GET", "/v1/models", headers={"authorization": given})
    assert (answer.status_code, answer.text) == (401, "unauthenticated: invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path",
    ["/v1", "/v1/", "/v1/unknown", "/v1/other/x", "/", "/v1x", "/metrics", "/health/ready/", "/hooksx"],
)
def test_every_path_needs_it(path: str) -> None:
    assert status(path) == 401


def test_open_paths_need_none_to_be_read_and_an_open_prefix_never() -> None:
    assert status("/health/ready") == 200
    assert ask(APP, "HEAD", "/health/ready").status_code == 200
    assert ask(APP, "POST", "/health/ready").status_code == 401
    assert ask(APP, "POST", "/hooks/run").status_code == 200


def test_a_header_of_one_api_lets_in_everywhere_as_bearer_does() -> None:
    assert status("/v1/other/x", x_api_key="s3cret") == 200
    assert status("/v1/other/x", x_api_key="s3cre") == 401
    assert status("/v1/other/x", authorization="Bearer s3cret") == 200
    assert status("/v1/models", x_api_key="s3cret") == status("/", x_api_key="s3cret") == 200
    assert status("/v1/models", x_api_key="s3cre") == status("/", x_other="s3cret") == 401


def test_one_of_several_keys_lets_in_and_its_name_and_owner_go_with_the_request(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a: first\nb: second\n")
    (tmp_path / "keys").chmod(0o600)
    ring = KeyRing(ServerSettings(api_keys=str(tmp_path / "keys")))
    owners = [each.owner for each in ring.keys]

    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(f"{name_of(scope)} {owner_of(scope)}")(scope, receive, send)

    app = RequireApiKey(tell, ring=ring, apis=APIS)
    answers = [ask(app, "GET", "/v1/x", headers={"authorization": f"Bearer {key}"}) for key in ("first", "second", "x")]
    assert [answer.text for answer in answers[:2]] == [f"a {owners[0]}", f"b {owners[1]}"]
    assert answers[2].status_code == 401
    assert ask(tell, "GET", "/v1/x").text == " "
