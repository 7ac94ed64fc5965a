"""The checkpoint's chat template: a conversation to the text the model was trained to read."""

from __future__ import annotations

from typing import Any


class ChatTemplate:
    """A Jinja chat template, sandboxed and bounded."""

    def __init__(self, source: str) -> None:
        self._source = source

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Text of a conversation, ending where the model's answer begins."""
        raise NotImplementedError
