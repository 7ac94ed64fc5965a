"""A conversation as the model's template takes it: one system message, at its beginning.

Coding tools send several system messages, and some in the middle. Those at the beginning are joined. A later one is
folded into its neighbour, where it stands: moved to the beginning, it would change the prompt's first tokens in every
turn, and nothing of the states of the turn before could be used again. The text of a turn's conversation stays the
beginning of the next turn's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BLANK_LINE = "\n\n"


def folded(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with at most one system message, the first. The messages themselves are not changed.

    A later system message is appended to the user's message or tool's result before it. After an answer it begins the
    user's message that follows at once, or is a user's message of its own. Between calls and their results it waits for
    the last result.

    Args:
        messages: as chat templates take them, with contents as strings.
    """
    leading = next((place for place, each in enumerate(messages) if each["role"] != "system"), len(messages))
    result: list[dict[str, Any]] = []
    if leading:
        texts = [each["content"] for each in messages[:leading] if each["content"]]
        result.append({**messages[0], "content": _BLANK_LINE.join(texts)})
    waiting: list[str] = []  # texts of system messages for the next message
    num_open = 0  # results that the last answer's calls wait for
    for message in messages[leading:]:
        role = message["role"]
        if role == "system":
            if num_open or not result or result[-1]["role"] not in ("user", "tool"):
                waiting.append(message["content"])
            else:
                result[-1] = _joined(result[-1], [result[-1]["content"], message["content"]])
            continue
        if waiting and not (num_open and role == "tool"):
            if role == "user":
                message = _joined(message, [*waiting, message["content"]])
            else:
                result.append({"role": "user", "content": _BLANK_LINE.join(waiting)})
            waiting = []
        result.append(message)
        num_open = max(0, num_open - 1) if role == "tool" else len(message.get("tool_calls") or ())
        if waiting and role == "tool" and not num_open:
            result[-1] = _joined(message, [message["content"], *waiting])
            waiting = []
    if waiting:
        result.append({"role": "user", "content": _BLANK_LINE.join(waiting)})
    return result


def _joined(message: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    return {**message, "content": _BLANK_LINE.join(text for text in texts if text)}
