"""Patterns of module names in config.json, tried only if no name can take long to match.

A quantiser's patterns are Python's regular expressions, and the file is not trusted: some expressions take exponential
time. Patterns of names, character classes, single wildcards and a few alternatives do not.
"""

from __future__ import annotations

import re
from functools import lru_cache

from qwonnx.export.errors import ConfigError

_CLASS = r"(?:\.|\\[dw]|\[\^?[\w.\\-]+\])"
_SIMPLE = re.compile(rf"\^?(?:[\w-]|\\\.|{_CLASS}[*+]?|\((?:\?:)?|\||\)(?![*+?{{]))*\$?")
_MAX_WILDCARDS, _MAX_CHOICES = 3, 2  # unbounded repetitions, and groups or alternatives that may be tried again
_MAX_ALTERNATIVES = 16


def matches(pattern: str, module: str, field: str) -> bool:
    """Whether a module's name begins with a match of a pattern; `field` names the pattern's place in errors.

    Raises:
        ConfigError: the pattern is malformed, or may take long.
    """
    compiled = _compiled(pattern)
    if compiled is None:
        raise ConfigError(
            f"quantization_config: the pattern {pattern[:60]!r} of {field} is more than names, dots, wildcards and .*"
        )
    return compiled.match(module) is not None


@lru_cache(maxsize=1 << 12)
def _compiled(pattern: str) -> re.Pattern[str] | None:
    repeats = pattern.count("*") + pattern.count("+")
    choices, alternatives = pattern.count("("), pattern.count("|")
    if repeats > _MAX_WILDCARDS or choices > _MAX_CHOICES or alternatives > _MAX_ALTERNATIVES:
        return None
    if not _SIMPLE.fullmatch(pattern):
        return None
    try:
        return re.compile(pattern)
    except re.error:
        return None
