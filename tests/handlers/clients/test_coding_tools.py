"""Coding tools of the command line finish a session of two turns with a call, and the real engine takes their prompts.

`make clients` installs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.handlers.clients.coding_tools import CONTEXT, TOOLS
from tests.handlers.clients.miniature import Miniature, export, serving_miniature
from tests.handlers.clients.programs import run, running
from tests.handlers.clients.scripted import scripted
from tests.handlers.serving import until

pytestmark = pytest.mark.soak

QUESTION, SECOND_QUESTION = "Read the note.", "Germany?"
ANSWER, SECOND = "The note says hi.", "Ujerumani it is."
NOTE = "hi from the note"
CALL = "A tool.\n</think>\n\n<tool_call>\n<function={}>\n{}</function>\n</tool_call>"
# A tool of each program that reads a file, with its parameters.
READERS = {
    "Bash": {"command": "cat note.txt", "description": "Read the note"},
    "bash": {"command": "cat note.txt", "description": "Read the note"},
    "exec_command": {"cmd": "cat note.txt"},
    "run_shell_command": {"command": "cat note.txt", "is_background": "false", "description": "Read the note"},
}
# In the miniature's tokens, less a tenth: prompts depend on the machine. A tool may ask for a title first.
LEAST_PROMPT = {
    "Claude Code": 34_000,
    "Codex": 16_000,
    "qwen-code": 28_000,
    "opencode": 12_000,
    "pi": 2_000,
    "Continue": 2_800,
    "aider": 120,
}
GENERATING = ("/v1/chat/completions", "/v1/responses", "/v1/messages")
SECONDS = 300.0


def say(prompt: str) -> str:
    """What the model answers to the last message of a prompt: a call, what the tool has said, or a short text."""
    last = prompt[prompt.rindex("user\n") :]
    if "<tool_response>" in last:
        return f"I see.\n</think>\n\n{ANSWER if NOTE in last else 'There is nothing.'}"
    if "added these files" in last:
        return f"I see.\n</think>\n\n{ANSWER if NOTE in prompt else 'There is nothing.'}"
    if QUESTION.removesuffix(".") in last:
        name = next((name for name in READERS if re.search(rf'"name": ?"{name}"', prompt)), None)
        if name is None:  # aider sends a file that is named
            return "A file.\n</think>\n\nShow me note.txt, please."
        parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in READERS[name].items())
        return CALL.format(name, parameters)
    return f"He asks.\n</think>\n\n{SECOND}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a session, with a note."""
    made = tmp_path / "work"
    made.mkdir()
    (made / "note.txt").write_text(f"{NOTE}\n", encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Miniature]:
    artifact = export(tmp_path_factory.mktemp("long"), CONTEXT)
    with serving_miniature(artifact, CONTEXT) as served:
        yield served


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_finishes_a_session_of_two_turns_with_a_call(name: str, tmp_path: Path, folder: Path) -> None:
    with scripted(tmp_path / "artifact", say) as served:
        commands = TOOLS[name](folder, served.url, QUESTION, SECOND_QUESTION)
        first = run(commands.first, folder, **commands.environment)
        second = run(commands.second, folder, **commands.environment)
    assert ANSWER in first
    assert SECOND in second


@pytest.mark.parametrize("name", TOOLS)
def test_the_real_engine_answers_a_tools_first_request(name: str, miniature: Miniature, folder: Path) -> None:
    """The miniature cannot follow such prompts, so what the tool makes of the answer is not judged."""
    commands = TOOLS[name](folder, miniature.url, QUESTION, SECOND_QUESTION)
    miniature.answered.clear()
    miniature.prompts.clear()
    with running(commands.first, folder, **commands.environment):
        until(lambda: max(miniature.prompts, default=0) >= LEAST_PROMPT[name], SECONDS)
    print(f"{name}: prompts of {miniature.prompts} tokens")
    assert {status for path, status in miniature.answered if path in GENERATING} == {200}
