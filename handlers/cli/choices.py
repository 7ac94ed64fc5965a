"""The words that options take, as typer wants them: enumerations of what is registered or declared elsewhere."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from qwonnx.export.targets.register import DEFAULT_TARGET, TARGETS

if TYPE_CHECKING:

    class TargetName(StrEnum):
        """A registered target."""
else:
    TargetName = StrEnum("TargetName", {name.upper(): name for name in TARGETS})

FIRST_TARGET = TargetName(DEFAULT_TARGET)


def summaries() -> str:
    """All targets and what they are, in one line."""
    return ". ".join(f"{name}: {target.summary}" for name, target in TARGETS.items()) + "."
