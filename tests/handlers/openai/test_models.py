"""The list of models, which has one model with its names."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from starlette.applications import Starlette

from qwonnx.handlers import errors
from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.http.api import Apis
from qwonnx.handlers.model_host import HostStatus
from qwonnx.handlers.openai.api import OPENAI
from qwonnx.handlers.settings import ServerSettings
from tests.handlers.fakes import ask

pytestmark = pytest.mark.fast

NAME = "org/model"
MODEL = {"id": NAME, "created": 0, "max_model_len": 512, "parent": None, "object": "model", "owned_by": "qwonnx"}


class Host:
    """Has one model, which is ready or not."""

    def __init__(self, *, ready: bool = True) -> None:
        self._ready = ready
        self.status = HostStatus.READY if ready else HostStatus.LOADING

    async def engine_when_ready(self, max_held: int) -> object:
        return self.ready_engine()

    def ready_engine(self) -> object:
        if not self._ready:
            raise errors.not_ready("is loading")
        return SimpleNamespace(max_model_len=512)

    def model_names(self) -> tuple[str, ...]:
        return (NAME, "other")

    def served_names(self) -> tuple[str, ...]:
        return self.model_names()

    def adapter_of(self, name: str) -> str:
        return ""

    def check_model(self, name: str) -> str:
        if name != NAME:
            raise ServiceError(ErrorKind.NOT_FOUND, 404, "no", parameter="model", code="model_not_found")
        return NAME


def app(host: Host) -> Starlette:
    apis = Apis([OPENAI])
    made = Starlette(routes=apis.routes, exception_handlers=apis.exception_handlers())
    made.state.host = host
    made.state.settings = ServerSettings(hold_while_loading=0)
    return made


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/"])
def test_the_list_has_the_one_model_under_each_of_its_names(path: str) -> None:
    both = [MODEL, {**MODEL, "id": "other"}]
    assert ask(app(Host()), "GET", path).json() == {"data": both, "object": "list"}


def test_a_model_is_found_by_its_name_with_slashes_and_no_other_is() -> None:
    assert ask(app(Host()), "GET", f"/v1/models/{NAME}").json() == MODEL
    answer = ask(app(Host()), "GET", "/v1/models/model")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{NAME}"])
def test_a_model_that_loads_is_not_listed_yet(path: str) -> None:
    answer = ask(app(Host(ready=False)), "GET", path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
