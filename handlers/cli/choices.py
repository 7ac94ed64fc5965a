"""Choices of options, as enumerations for typer; other modules register or declare the names."""

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


def default_recipes() -> str:
    """The recipe of int4, and those of targets with another."""
    named = {name: target.default_recipe for name, target in TARGETS.items()}
    first = named[DEFAULT_TARGET]
    return ", ".join((first, *(f"{recipe} with --target {name}" for name, recipe in named.items() if recipe != first)))


def summaries() -> str:
    """All targets with their summaries, in one line."""
    return ". ".join(f"{name}: {target.summary}" for name, target in TARGETS.items()) + "."
