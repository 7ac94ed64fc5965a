"""Coding tools of the command line: how each finds a server, and what it is called with.

Each runs in a folder of its own, with a home in it, without a network and without questions.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.handlers.clients import installed
from tests.handlers.clients.scripted import MODEL

CONTEXT = 65_536  # tokens, that tools which ask are told
Words = list[str | Path]


@dataclass(frozen=True, slots=True)
class Commands:
    """Two turns of a session.

    Attributes:
        first: asks in a new conversation.
        second: asks in the same one.
        environment: of both.
    """

    first: Words
    second: Words
    environment: Mapping[str, str] = field(default_factory=dict)


Prepare = Callable[[Path, str, str, str], Commands]
"""From a folder, the server's address, and two questions to commands. Skips the test if the tool is not installed."""


def claude_code(folder: Path, url: str, first: str, second: str) -> Commands:
    claude = installed.node_program("@anthropic-ai/claude-code", "claude")
    words: Words = [claude, "-p", "--allowedTools", "Bash", "--output-format", "text"]
    environment = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_MODEL": MODEL,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    return Commands([*words, first], [*words, "--continue", second], environment)


def codex(folder: Path, url: str, first: str, second: str) -> Commands:
    program = installed.node_program("@openai/codex", "codex")
    home = folder / "codex"
    home.mkdir()
    (home / "config.toml").write_text(
        f'model = "{MODEL}"\nmodel_provider = "local"\nsandbox_mode = "danger-full-access"\n'
        f'[model_providers.local]\nname = "local"\nbase_url = "{url}/v1"\nwire_api = "responses"\n',
        encoding="utf-8",
    )
    options: Words = ["--skip-git-repo-check", "--json"]
    resume: Words = [program, "exec", "resume", "--last", *options, second]
    return Commands([program, "exec", *options, first], resume, {"CODEX_HOME": str(home)})


def qwen_code(folder: Path, url: str, first: str, second: str) -> Commands:
    qwen = installed.node_program("@qwen-code/qwen-code", "qwen")
    words: Words = [qwen, "--yolo", "--auth-type", "openai"]
    environment = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "none", "OPENAI_MODEL": MODEL}
    return Commands([*words, "-p", first], [*words, "--continue", "-p", second], environment)


def opencode(folder: Path, url: str, first: str, second: str) -> Commands:
    program = installed.node_program("opencode-ai", "opencode")
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{url}/v1", "apiKey": "none"},
        "models": {MODEL: {"name": MODEL, "limit": {"context": CONTEXT, "output": 32_000}}},
    }
    config = {"provider": {"local": provider}, "autoupdate": False, "share": "disabled"}
    (folder / "opencode.json").write_text(json.dumps(config), encoding="utf-8")
    words: Words = [program, "run", "-m", f"local/{MODEL}"]
    environment = {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_LSP_DOWNLOAD": "1"}
    return Commands([*words, first], [*words, "--continue", second], environment)


def pi(folder: Path, url: str, first: str, second: str) -> Commands:
    program = installed.node_program("@mariozechner/pi-coding-agent", "pi")
    home = folder / "home" / ".pi" / "agent"
    home.mkdir(parents=True)
    model = {"id": MODEL, "reasoning": True, "input": ["text"], "contextWindow": CONTEXT, "maxTokens": 8_000}
    provider = {"baseUrl": f"{url}/v1", "api": "openai-completions", "apiKey": "none", "models": [model]}
    (home / "models.json").write_text(json.dumps({"providers": {"local": provider}}), encoding="utf-8")
    words: Words = [program, "--provider", "local", "--model", MODEL]
    return Commands([*words, "-p", first], [*words, "--continue", "-p", second])


def continue_cli(folder: Path, url: str, first: str, second: str) -> Commands:
    cn = installed.node_program("@continuedev/cli", "cn")
    config = folder / "config.yaml"
    config.write_text(
        f"name: local\nversion: 1.0.0\nschema: v1\nmodels:\n  - name: local\n    provider: openai\n"
        f"    model: {MODEL}\n    apiBase: {url}/v1\n    apiKey: none\n"
        f"    roles: [chat]\n    capabilities: [tool_use]\n",
        encoding="utf-8",
    )
    words: Words = [cn, "--config", config]
    environment = {"CONTINUE_TELEMETRY_ENABLED": "0", "CONTINUE_CLI_ENABLE_TELEMETRY": "0"}
    return Commands([*words, "--auto", "-p", first], [*words, "--resume", "-p", second], environment)


def aider(folder: Path, url: str, first: str, second: str) -> Commands:
    """It has no tools: it sends a file when the model names one that the repository has, which is its way to read."""
    program = installed.interpreter("aider-chat").with_name("aider")
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    for command in (["init", "--quiet"], ["add", "note.txt"], ["commit", "--quiet", "--message", "A note"]):
        subprocess.run(["git", *identity, *command], cwd=folder, check=True)
    options = ["--chat-mode", "ask", "--yes-always", "--no-pretty", "--no-gitignore", "--analytics-disable"]
    options += ["--no-check-update", "--no-show-model-warnings", "--no-show-release-notes", "--no-detect-urls"]
    options += ["--model", f"openai/{MODEL}", "--map-tokens", "0", "--restore-chat-history"]
    environment = {"OPENAI_API_BASE": f"{url}/v1", "OPENAI_API_KEY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    words: Words = [program, *options, "--message"]
    return Commands([*words, first], [*words, second], environment)


TOOLS: dict[str, Prepare] = {
    "Claude Code": claude_code,
    "Codex": codex,
    "qwen-code": qwen_code,
    "opencode": opencode,
    "pi": pi,
    "Continue": continue_cli,
    "aider": aider,
}
