"""Real clients, each in a session with the trained miniature: `make clients` installs them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.handlers.clients import installed
from tests.handlers.clients.miniature import Miniature, export, serving_miniature
from tests.handlers.clients.programs import run
from tests.handlers.clients.session_table import SESSIONS, SESSIONS_FOLDER, Session, path_of, table

ROOT = Path(__file__).parents[3]
LEAST_STEPS = 150
# Without these, some frameworks ask the network for prices, report their use, or want a key.
ENVIRONMENT = {
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_API_KEY": "none",
    "PYTHONPATH": str(ROOT),
}


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Miniature]:
    artifact = export(tmp_path_factory.mktemp("miniature"))
    with serving_miniature(artifact, max_model_len=16_384) as served:
        yield served


@pytest.mark.soak
@pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session.client)
def test_a_client_finishes_its_session(session: Session, miniature: Miniature, tmp_path: Path) -> None:
    miniature.answered.clear()
    outcomes = [json.loads(line) for line in output(session, miniature.url, tmp_path).splitlines() if is_outcome(line)]
    failed = [outcome for outcome in outcomes if outcome["error"]]
    assert not failed, "\n".join(f"{outcome['step']}: {outcome['error']}" for outcome in failed)
    names = Counter((outcome["endpoint"], outcome["step"]) for outcome in outcomes)
    assert set(names.values()) == {1}, names
    assert Counter(outcome["endpoint"] for outcome in outcomes) == session.steps
    for endpoint, number in session.steps.items():
        assert miniature.answered[path_of(endpoint), 200] >= number
    assert not [path for path, status in miniature.answered if status >= 500]


def output(session: Session, url: str, folder: Path) -> str:
    """What the session's program prints."""
    script = SESSIONS_FOLDER / session.script
    if session.is_javascript:
        beside = (script.with_name("steps.mjs"), SESSIONS_FOLDER / "questions.json")
        return installed.run_module(script, session.package, folder, url, beside=beside)
    module = f"tests.handlers.clients.sessions.{script.stem}"
    return run([installed.interpreter(session.package), "-m", module, url], folder, **ENVIRONMENT)


def is_outcome(line: str) -> bool:
    """Frameworks print lines of their own."""
    return line.startswith('{"endpoint"')


def test_the_sessions_have_many_steps_and_a_document_has_them() -> None:
    assert sum(sum(session.steps.values()) for session in SESSIONS) >= LEAST_STEPS
    scripts = {path.relative_to(SESSIONS_FOLDER).as_posix() for path in SESSIONS_FOLDER.rglob("*_session.*")}
    assert {session.script for session in SESSIONS} == scripts - {path for path in scripts if "__pycache__" in path}
    assert "\n".join(table()) in (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
