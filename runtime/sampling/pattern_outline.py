"""The outline of a regular expression: its anchors and its alternatives, found in one pass from left to right.

This does not check the expression; the compiler of grammars does.
"""

from __future__ import annotations

from msgspec import Struct


class PatternOutline(Struct, frozen=True):
    """Where an expression has anchors and alternatives.

    begins, ends: it begins with `^`; it ends with `$`.
    has_other_anchors: it has a `^` or `$` elsewhere, outside classes.
    has_alternatives: it has a `|` outside groups and classes.
    """

    begins: bool
    ends: bool
    has_other_anchors: bool
    has_alternatives: bool


def outline_of(pattern: str) -> PatternOutline:
    """The outline of an expression. The time is proportional to its length."""
    begins = pattern.startswith("^")
    ends = has_other_anchors = has_alternatives = False
    depth = 0
    place = int(begins)
    while place < len(pattern):
        character = pattern[place]
        if character == "\\":
            place += 1  # the next character is itself
        elif character == "[":
            place = _end_of_class(pattern, place)
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
        elif character == "$" and place == len(pattern) - 1:
            ends = True
        elif character in "^$":
            has_other_anchors = True
        elif character == "|" and depth <= 0:
            has_alternatives = True
        place += 1
    return PatternOutline(begins, ends, has_other_anchors, has_alternatives)


def _end_of_class(pattern: str, start: int) -> int:
    """The place of the `]` of a class, or the last place of the pattern if the class has no end."""
    place = start + 1
    if pattern.startswith("^", place):
        place += 1
    if pattern.startswith("]", place):  # as the first character, it is a member
        place += 1
    while place < len(pattern) and pattern[place] != "]":
        place += 2 if pattern[place] == "\\" else 1
    return min(place, len(pattern) - 1)
