"""The hooks of MicroVMs: off by default, truthful about readiness, and new randomness after each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette

from qwonnx.handlers.app import create_app
from qwonnx.handlers.http.microvm import PREFIX
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.sampling import entropy
from tests.handlers.fakes import ask
from tests.handlers.serving import RUNTIME

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def host(counting_folder: Path) -> Iterator[ModelHost]:
    made = ModelHost(lambda: Engine.open(counting_folder, RUNTIME))
    made.wait()
    yield made
    made.close()


@pytest.fixture
def app(host: ModelHost, tmp_path: Path) -> Starlette:
    settings = ServerSettings(microvm_hooks=True, capsules=f"memory://{tmp_path.name}", api_key="secret")
    return create_app(host, settings)


def test_they_are_off_by_default(host: ModelHost) -> None:
    assert ask(create_app(host), "POST", f"{PREFIX}/run").status_code == 404


def test_an_image_is_ready_when_the_model_answers(counting_folder: Path, app: Starlette) -> None:
    loading = ModelHost(lambda: Engine.open(counting_folder, RUNTIME))
    early = create_app(loading, ServerSettings(microvm_hooks=True))
    assert ask(early, "POST", f"{PREFIX}/ready").status_code == 503
    assert ask(app, "POST", f"{PREFIX}/ready").status_code == 200
    assert ask(app, "GET", f"{PREFIX}/ready").status_code == 405


@pytest.mark.parametrize("name", ["run", "resume"])
def test_a_copy_that_begins_has_new_randomness_and_connections(app: Starlette, name: str) -> None:
    salt, files = entropy._salt, app.state.capsules._files
    assert ask(app, "POST", f"{PREFIX}/{name}", json={"microvmId": "vm-1"}).status_code == 200
    assert entropy._salt != salt
    assert app.state.capsules._files is not files
    assert app.state.capsules._files._system is not files._system
    assert ask(app, "POST", f"{PREFIX}/{name}", content=b"x" * 70_000).status_code == 413


@pytest.mark.parametrize("name", ["suspend", "terminate", "validate"])
def test_the_other_hooks_answer_and_end_nothing(app: Starlette, host: ModelHost, name: str) -> None:
    assert ask(app, "POST", f"{PREFIX}/{name}").status_code == 200
    assert host.ready_engine().is_ready
