"""Which sessions there are, and how many steps each takes.

`python -m tests.handlers.clients.session_table` prints the table of docs/clients.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.handlers.clients.install import PACKAGES

SESSIONS_FOLDER = Path(__file__).with_name("sessions")


@dataclass(frozen=True, slots=True)
class Session:
    """A client's session.

    Attributes:
        client: its name in documents.
        package: the distribution, or package of npm, that must be installed.
        script: relative to SESSIONS_FOLDER; a Python module, or an ES module.
        steps: how many try an endpoint, by the part of its path after /v1/, "chat" for chat/completions.
    """

    client: str
    package: str
    script: str
    steps: Mapping[str, int]

    @property
    def is_javascript(self) -> bool:
        return self.script.endswith(".mjs")


SESSIONS = (
    Session(
        "openai",
        "openai",
        "openai_session.py",
        {"chat": 12, "completions": 4, "responses": 8, "responses/input_tokens": 1, "models": 1},
    ),
    Session(
        "anthropic", "anthropic", "anthropic_session.py", {"messages": 17, "messages/count_tokens": 1, "models": 1}
    ),
    Session("ollama", "ollama", "ollama_session.py", {"api/chat": 9, "api/generate": 4, "api/tags": 1, "api/show": 1}),
    Session("litellm", "litellm", "litellm_session.py", {"chat": 9, "completions": 1, "responses": 2, "messages": 5}),
    Session(
        "LangChain",
        "langchain-openai",
        "langchain_session.py",
        {"chat": 10, "responses": 11, "messages": 10, "messages/count_tokens": 1, "completions": 1},
    ),
    Session("pydantic-ai", "pydantic-ai-slim", "pydantic_ai_session.py", {"chat": 7, "responses": 7, "messages": 7}),
    Session("openai-agents", "openai-agents", "openai_agents_session.py", {"responses": 8, "chat": 7}),
    Session("instructor", "instructor", "instructor_session.py", {"chat": 10, "responses": 1, "messages": 3}),
    Session("llama-index", "llama-index-llms-openai-like", "llama_index_session.py", {"chat": 8, "completions": 1}),
    Session("smolagents", "smolagents", "smolagents_session.py", {"chat": 7}),
    Session("haystack", "haystack-ai", "haystack_session.py", {"chat": 7, "responses": 6}),
    Session("dspy", "dspy", "dspy_session.py", {"chat": 5, "completions": 1, "responses": 2}),
    Session("qwen-agent", "qwen-agent", "qwen_agent_session.py", {"chat": 6}),
    Session("llm", "llm", "llm_session.py", {"chat": 6, "responses": 5}),
    Session(
        "openai, JavaScript",
        "openai",
        "javascript/openai_session.mjs",
        {"chat": 8, "completions": 2, "responses": 6, "responses/input_tokens": 1, "models": 1},
    ),
    Session(
        "Anthropic's SDK, JavaScript",
        "@anthropic-ai/sdk",
        "javascript/anthropic_session.mjs",
        {"messages": 10, "messages/count_tokens": 1},
    ),
    Session("AI SDK", "ai", "javascript/ai_sdk_session.mjs", {"chat": 14, "responses": 14, "messages": 7}),
    Session(
        "LangChain, JavaScript",
        "@langchain/openai",
        "javascript/langchain_session.mjs",
        {"chat": 6, "responses": 7, "messages": 6},
    ),
)


def path_of(endpoint: str) -> str:
    """The path of an endpoint's requests."""
    if endpoint == "chat":
        return "/v1/chat/completions"
    return f"/{endpoint}" if endpoint.startswith("api/") else f"/v1/{endpoint}"


def versions() -> dict[tuple[bool, str], str]:
    """The versions that install.py installs, by whether it is a package of npm and its name."""
    npm = json.loads((PACKAGES / "package.json").read_text(encoding="utf-8"))["dependencies"]
    found = {(True, name): version for name, version in npm.items()}
    for requirements in PACKAGES.glob("*.txt"):
        pinned = re.findall(r"^([\w-]+)(?:\[.*\])?==(\S+)", requirements.read_text(encoding="utf-8"), re.MULTILINE)
        found |= {(False, name): version for name, version in pinned}
    return found


def table() -> list[str]:
    """The lines of the table of docs/clients.md."""
    known = versions()
    lines = ["| Client | Version | Steps by endpoint |", "|---|---|---|"]
    for session in SESSIONS:
        steps = ", ".join(f"{endpoint} {number}" for endpoint, number in session.steps.items())
        lines.append(f"| {session.client} | {known[session.is_javascript, session.package]} | {steps} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
