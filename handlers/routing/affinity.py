"""What a request continues: the beginning that it shares with other conversations, and its own conversation.

Both are hashes of text, as the names of capsules are. A body that is no chat has neither, and any replica will do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

_SYSTEM_ROLES = ("system", "developer")
# The states of a shorter beginning are computed sooner than another replica's queue is waited for.
_LEAST_BEGINNING_BYTES = 256
_PROMPT_CHARACTERS = 2048  # of a plain prompt


@dataclass(frozen=True, slots=True)
class Affinity:
    """beginning: of system prompt and tools, None if they are short. conversation: of these and the first message."""

    beginning: bytes | None = None
    conversation: bytes | None = None


def affinity_of(body: bytes) -> Affinity:
    """The affinity of a request's JSON body, in the form of any chat API."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return Affinity()
    if not isinstance(document, dict):
        return Affinity()
    messages = document.get("messages", document.get("input"))
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list):
        return _of_prompt(document.get("prompt"))
    leading = 0
    while leading < len(messages) and _role(messages[leading]) in _SYSTEM_ROLES:
        leading += 1
    shared = [document.get("system"), document.get("instructions"), document.get("tools"), messages[:leading]]
    first = next((each for each in messages[leading:] if _role(each) == "user"), None)
    text = msgspec.json.encode(shared)
    beginning = _digest(text) if len(text) >= _LEAST_BEGINNING_BYTES else None
    return Affinity(beginning, None if first is None else _digest(text + msgspec.json.encode(first)))


def _of_prompt(prompt: Any) -> Affinity:
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        return Affinity()
    return Affinity(None, _digest(prompt[:_PROMPT_CHARACTERS].encode(errors="replace")))


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()
