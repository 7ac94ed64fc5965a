"""/v1/responses as real clients use it, with a scripted model: node.py and python.py say how to install them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.handlers.clients import node
from tests.handlers.clients import python as python_clients
from tests.handlers.clients.programs import run
from tests.handlers.clients.scripted import MODEL, scripted

pytestmark = pytest.mark.soak

CALL = "A tool.\n</think>\n\nI look.\n\n<tool_call>\n<function={}>\n{}</function>\n</tool_call>"
_PARAMETER = "<parameter={}>\n{}\n</parameter>\n"


def say(prompt: str) -> str:
    """What the model answers to the last message of a prompt."""
    last = prompt[prompt.rindex("user\n") :]
    if "JSON please" in last:
        return 'Hm.\n</think>\n\n{"country":"Kenya","days":3}'
    if "<tool_response>" in last:
        return f"I see.\n</think>\n\n{'The note says hi.' if 'hi from the note' in last else 'It is sunny.'}"
    if "Weather" in last:
        return CALL.format("get_weather", _PARAMETER.format("city", "Oslo") + _PARAMETER.format("days", "3"))
    if "Read the note" in last:
        return CALL.format("exec_command", _PARAMETER.format("cmd", "cat note.txt"))
    return "He asks.\n</think>\n\nUjerumani it is."


def test_javascripts_clients_finish_their_sessions(tmp_path: Path) -> None:
    modules = node.installed("@langchain/openai")
    with scripted(tmp_path / "artifact", say) as served:
        told = node.run_script(Path(__file__).with_name("responses.mjs"), modules, tmp_path, served.url)
    assert "22 passed, 0 failed" in told


def test_pythons_frameworks_finish_their_sessions(tmp_path: Path) -> None:
    python = python_clients.interpreter()
    script = Path(__file__).with_name("responses_session.py")
    # Without it, litellm waits for a list of prices from the network.
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONSAFEPATH": "1"}
    with scripted(tmp_path / "artifact", say) as served:
        told = run([python, script, served.url], tmp_path, **environment)
    assert "18 passed, 0 failed" in told


def test_codex_finishes_a_session_of_two_turns_with_a_call(tmp_path: Path) -> None:
    codex = node.installed("@openai/codex") / ".bin" / "codex"
    (tmp_path / "note.txt").write_text("hi from the note\n", encoding="utf-8")
    home = tmp_path / "codex"
    home.mkdir()
    options = ("--skip-git-repo-check", "--json")
    with scripted(tmp_path / "artifact", say) as served:
        (home / "config.toml").write_text(
            f'model = "{MODEL}"\nmodel_provider = "local"\nsandbox_mode = "danger-full-access"\n'
            f'[model_providers.local]\nname = "local"\nbase_url = "{served.url}/v1"\nwire_api = "responses"\n',
            encoding="utf-8",
        )
        first = run([codex, "exec", *options, "Read the note."], tmp_path, CODEX_HOME=str(home))
        second = run([codex, "exec", "resume", "--last", *options, "Germany?"], tmp_path, CODEX_HOME=str(home))
    assert "hi from the note" in first
    assert "The note says hi." in first
    assert "Ujerumani it is." in second
