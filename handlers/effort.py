"""How hard the model shall think, in the words of OpenAI and Anthropic."""

from __future__ import annotations

from typing import Literal, get_args

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
THINKING_EFFORTS: tuple[str, ...] = tuple(effort for effort in get_args(Effort) if effort != "none")


def thinks(effort: Effort | None) -> bool | None:
    """Whether an effort switches thinking on or off; None leaves it to the template."""
    return None if effort is None else effort != "none"
