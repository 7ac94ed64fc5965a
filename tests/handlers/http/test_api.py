"""The API of a path, and errors in the format of that API."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from qwonnx.handlers import errors
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http.api import Api, Apis
from tests.handlers.fakes import ask

pytestmark = pytest.mark.fast


async def greet(request: Request) -> Response:
    return PlainTextResponse("hello")


async def refuse(request: Request) -> Response:
    raise errors.closing()


def api(prefix: str, *paths: str, endpoint: Any = greet) -> Api:
    """An API whose errors are `prefix|kind|message`."""

    def speak(error: ServiceError) -> Response:
        return PlainTextResponse(f"{prefix}|{error.kind.value}|{error.message}", error.status, error.headers)

    return Api(prefix, [Route(prefix + path, endpoint) for path in paths], speak, f"look under {prefix}")


OUTER, INNER, OTHER = api("/v1", "/greet"), api("/v1/inner", "/refuse", endpoint=refuse), api("/api", "/greet")
APIS = Apis([OUTER, INNER, OTHER])


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("/v1", OUTER),
        ("/v1/", OUTER),
        ("/v1/greet", OUTER),
        ("/v1/innermost", OUTER),
        ("/v1/inner", INNER),
        ("/v1/inner/refuse/x", INNER),
        ("/api/tags", OTHER),
        ("/v1x", None),
        ("/V1", None),
        ("/", None),
        ("", None),
        ("/health/live", None),
    ],
)
def test_a_path_belongs_to_the_longest_prefix(path: str, owner: Api | None) -> None:
    assert APIS.owner(path) is owner
    assert Apis([INNER, OTHER, OUTER]).owner(path) is owner, "their order makes no difference"


def test_the_first_one_answers_for_paths_of_none() -> None:
    assert bytes(APIS.error_response("/nowhere", errors.closing()).body).startswith(b"/v1|unavailable|")
    assert bytes(Apis([OTHER, OUTER]).error_response("/nowhere", errors.closing()).body).startswith(b"/api|")


@pytest.fixture
def app() -> Starlette:
    return Starlette(routes=APIS.routes, exception_handlers=APIS.exception_handlers())


def test_routes_of_all_are_served(app: Starlette) -> None:
    assert [ask(app, "GET", path).text for path in ("/v1/greet", "/api/greet")] == ["hello", "hello"]


def test_an_endpoints_error_is_said_in_its_apis_words_with_its_status_and_headers(app: Starlette) -> None:
    answer = ask(app, "GET", "/v1/inner/refuse")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.text.startswith("/v1/inner|unavailable|")


@pytest.mark.parametrize("prefix", ["/v1", "/v1/inner", "/api"])
def test_an_unknown_route_is_a_404_with_its_apis_hint(app: Starlette, prefix: str) -> None:
    answer = ask(app, "GET", f"{prefix}/nothing")
    expected = f"{prefix}|not_found|no such route: {prefix}/nothing: look under {prefix}"
    assert (answer.status_code, answer.text) == (404, expected)


def test_a_long_path_is_not_said_back_in_full(app: Starlette) -> None:
    assert "x" * 150 in ask(app, "GET", "/" + "x" * 5000).text
    assert "x" * 201 not in ask(app, "GET", "/" + "x" * 5000).text


def test_a_method_that_a_route_does_not_have_is_a_405_that_says_which_it_has(app: Starlette) -> None:
    answer = ask(app, "POST", "/api/greet")
    assert (answer.status_code, answer.text) == (405, "/api|invalid|POST is not allowed on /api/greet")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
