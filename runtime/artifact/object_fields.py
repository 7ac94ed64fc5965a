"""The fields of a parsed JSON object, by name and type: of config.json and of adapter_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from qwonnx.runtime.artifact.strict_json import quoted

# The end of a message about a wrong value. The file may describe a user's own model, so nothing else has it.
CORRECT = "correct it, or restore the file that was saved with the weights"

# Far above any model's dimensions. A product of three larger ones would not be a sane number of bytes.
MAX_SIZE = 1 << 24

# Far beyond any model's factors, bases and epsilons; their products and logarithms stay finite in float32.
MIN_NUMBER, MAX_NUMBER = 1e-12, 1e12


def is_off(value: Any) -> bool:
    """Whether a value turns any field off."""
    return value is None or value is False or value in ([], {}, "")


class ObjectFields:
    """The fields of one object; null counts as absent. Every error message starts with `where`.

    All methods raise error_type, which a subclass sets: the field is missing and has no default, is of another type, or
    is out of range.
    """

    error_type: ClassVar[type[Exception]]

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def size(self, name: str, *, at_least: int = 1, at_most: int = MAX_SIZE, default: int | None = None) -> int:
        value = self._present(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most:
            raise self.error(name, f"an integer from {at_least} to {at_most}")
        return value

    def number(self, name: str, *, above: float = MIN_NUMBER, default: float | None = None) -> float:
        value = self._present(name, default)
        # Compared before it is converted: a JSON integer may be larger than any float.
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= MAX_NUMBER:
            raise self.error(name, f"a number above {above:g}, up to {MAX_NUMBER:g}")
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._present(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.error(name, "a text")
        return value or None

    def error(self, name: str, expected: str) -> Exception:
        value = quoted(self.values.get(name))
        return self.error_type(f"{self.where}: {name} is {value} and must be {expected}: {CORRECT}")

    def _present(self, name: str, default: float | None) -> Any:
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.error_type(f"{self.where} has no {name}: {CORRECT}")
        return value
