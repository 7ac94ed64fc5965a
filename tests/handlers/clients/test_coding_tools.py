"""Coding tools of the command line finish a session of two turns with a call, before a scripted model.

node.py says how their packages are installed; each runs in a scratch home, without a network.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.handlers.clients import node
from tests.handlers.clients.programs import run
from tests.handlers.clients.scripted import MODEL, scripted

pytestmark = pytest.mark.soak

ANSWER, SECOND = "The note says hi.", "Ujerumani it is."
CALL = "A tool.\n</think>\n\n<tool_call>\n<function={}>\n{}</function>\n</tool_call>"
# A tool of each program that reads a file, with its parameters: `{}` is the folder.
READERS = {
    "Bash": {"command": "cat note.txt", "description": "Read the note"},
    "bash": {"command": "cat note.txt", "description": "Read the note"},
    "run_shell_command": {"command": "cat note.txt", "is_background": "false", "description": "Read the note"},
}


def say(prompt: str) -> str:
    """What the model answers to the last message of a prompt: a call, what the tool has said, or a short text."""
    last = prompt[prompt.rindex("user\n") :]
    if "<tool_response>" in last:
        return f"I see.\n</think>\n\n{ANSWER if 'hi from the note' in last else 'There is nothing.'}"
    if "Read the note" in last:
        name = next(name for name in READERS if re.search(rf'"name": ?"{name}"', prompt))
        parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in READERS[name].items())
        return CALL.format(name, parameters)
    return f"He asks.\n</think>\n\n{SECOND}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a session, with a note."""
    made = tmp_path / "work"
    made.mkdir()
    (made / "note.txt").write_text("hi from the note\n", encoding="utf-8")
    return made


def test_claude_code(tmp_path: Path, folder: Path) -> None:
    claude = node.installed("@anthropic-ai/claude-code") / ".bin" / "claude"
    with scripted(tmp_path / "artifact", say) as served:
        environment = {
            "ANTHROPIC_BASE_URL": served.url,
            "ANTHROPIC_API_KEY": "none",
            "ANTHROPIC_MODEL": MODEL,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
        }
        options = ["-p", "--allowedTools", "Bash", "--output-format", "text"]
        first = run([claude, *options, "Read the note."], folder, **environment)
        second = run([claude, *options, "--continue", "Germany?"], folder, **environment)
    assert ANSWER in first
    assert SECOND in second


def test_qwen_code(tmp_path: Path, folder: Path) -> None:
    qwen = node.installed("@qwen-code/qwen-code") / ".bin" / "qwen"
    with scripted(tmp_path / "artifact", say) as served:
        environment = {"OPENAI_BASE_URL": f"{served.url}/v1", "OPENAI_API_KEY": "none", "OPENAI_MODEL": MODEL}
        options = ["--yolo", "--auth-type", "openai"]
        first = run([qwen, *options, "-p", "Read the note."], folder, **environment)
        second = run([qwen, *options, "--continue", "-p", "Germany?"], folder, **environment)
    assert ANSWER in first
    assert SECOND in second


def test_opencode(tmp_path: Path, folder: Path) -> None:
    opencode = node.installed("opencode-ai") / ".bin" / "opencode"
    with scripted(tmp_path / "artifact", say) as served:
        provider = {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": f"{served.url}/v1", "apiKey": "none"},
            "models": {MODEL: {"name": MODEL, "limit": {"context": 65536, "output": 32000}}},
        }
        config = {"provider": {"local": provider}, "autoupdate": False, "share": "disabled"}
        (folder / "opencode.json").write_text(json.dumps(config), encoding="utf-8")
        environment = {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_LSP_DOWNLOAD": "1"}
        first = run([opencode, "run", "-m", f"local/{MODEL}", "Read the note."], folder, **environment)
        second = run([opencode, "run", "-m", f"local/{MODEL}", "--continue", "Germany?"], folder, **environment)
    assert ANSWER in first
    assert SECOND in second


def test_pi(tmp_path: Path, folder: Path) -> None:
    pi = node.installed("@mariozechner/pi-coding-agent") / ".bin" / "pi"
    home = folder / "home" / ".pi" / "agent"
    home.mkdir(parents=True)
    with scripted(tmp_path / "artifact", say) as served:
        model = {"id": MODEL, "reasoning": True, "input": ["text"], "contextWindow": 65536, "maxTokens": 8000}
        provider = {"baseUrl": f"{served.url}/v1", "api": "openai-completions", "apiKey": "none", "models": [model]}
        (home / "models.json").write_text(json.dumps({"providers": {"local": provider}}), encoding="utf-8")
        options = ["--provider", "local", "--model", MODEL]
        first = run([pi, *options, "-p", "Read the note."], folder)
        second = run([pi, *options, "--continue", "-p", "Germany?"], folder)
    assert ANSWER in first
    assert SECOND in second


def test_continue(tmp_path: Path, folder: Path) -> None:
    cn = node.installed("@continuedev/cli") / ".bin" / "cn"
    with scripted(tmp_path / "artifact", say) as served:
        config = folder / "config.yaml"
        config.write_text(
            f"name: local\nversion: 1.0.0\nschema: v1\nmodels:\n  - name: local\n    provider: openai\n"
            f"    model: {MODEL}\n"
            f"    apiBase: {served.url}/v1\n    apiKey: none\n    roles: [chat]\n    capabilities: [tool_use]\n",
            encoding="utf-8",
        )
        environment = {"CONTINUE_TELEMETRY_ENABLED": "0", "CONTINUE_CLI_ENABLE_TELEMETRY": "0"}
        options = ["--config", str(config), "--auto", "-p"]
        first = run([cn, *options, "Read the note."], folder, **environment)
        second = run([cn, "--config", str(config), "--resume", "-p", "Germany?"], folder, **environment)
    assert ANSWER in first
    assert SECOND in second
