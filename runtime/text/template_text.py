"""Text of a chat template, with the provenance of its characters: what the template wrote, and what it was given.

A TemplateText is a str that knows its own parts: spans that the template itself wrote. A plain str has none. So the
safe case needs no code: an operation that is not listed here returns a plain str, which is text of the request. The
operations here return exactly what str's return, and keep the spans. They copy spans, never single characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, SupportsIndex

from markupsafe import Markup

_MOST_REPLACED = 10_000  # pieces of which the spans are kept; a text with more of them is text of the request


class Span(NamedTuple):
    """Positions [start, end) of a text."""

    start: int
    end: int


class TemplateText(str):
    """A text, and the spans of it that a template wrote. Without spans, all of it is text of the request.

    Args:
        text: any text.
        own: spans of the template's own text: not empty, ascending, not touching.
    """

    __slots__ = ("_own",)
    _own: tuple[Span, ...]

    def __new__(cls, text: str = "", own: tuple[Span, ...] = ()) -> TemplateText:
        made = super().__new__(cls, plain(text))
        made._own = own
        return made

    # Templates cannot read names with an underscore, so these are functions of the module and private methods.

    def __str__(self) -> str:
        return self  # str(x) is how Jinja writes a value: it must not drop the spans

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        text = super().__getitem__(key)
        if not isinstance(key, slice):
            place = key.__index__() % len(self)
            return _made(text, _clipped(self._own, place, place + 1))
        places = range(*key.indices(len(self)))
        if places.step == 1:
            return _made(text, _clipped(self._own, places.start, max(places.start, places.stop)))
        return joined(self[place] for place in places)

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))

    def __add__(self, other: str) -> str:
        # Markup escapes what is added to it.
        return joined((self, other)) if _is_text(other) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined((other, self)) if _is_text(other) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> str:
        return joined([self] * count.__index__())

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        whole: str = plain(self) % values
        return verified(whole, lambda: _printf(self, values)) if is_own(self) else whole

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._found(super().split(sep, maxsplit))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._found(super().rsplit(sep, maxsplit), backwards=True)

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._found(super().splitlines(keepends))

    def partition(self, sep: str) -> tuple[str, str, str]:
        before, found, after = plain(self).partition(plain(sep))
        end = len(before) + len(found)
        return self[: len(before)], self[len(before) : end], self[end : end + len(after)]

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        before, found, _ = plain(self).rpartition(plain(sep))
        end = len(before) + len(found)
        return self[: len(before)], self[len(before) : end], self[end:]

    def strip(self, chars: str | None = None) -> str:
        start = len(self) - len(super().lstrip(chars))
        return self[start : max(start, len(super().rstrip(chars)))]

    def lstrip(self, chars: str | None = None) -> str:
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None) -> str:
        return self[: len(super().rstrip(chars))]

    def removeprefix(self, prefix: str, /) -> str:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> str:
        return self[: len(self) - len(suffix)] if suffix and self.endswith(suffix) else self

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        if (not own_spans(new) and not self._own) or self.count(old) > _MOST_REPLACED:
            return plain(self).replace(old, plain(new), count)
        limit = count.__index__() if count.__index__() >= 0 else len(self) + 1
        parts: list[str] = []
        place = 0
        if not old:
            for character in [*self][:limit]:
                parts += (new, character)
            parts += [self[limit:]] if limit <= len(self) else [new]
            return joined(parts)
        while limit and (found := self.find(old, place)) >= 0:
            parts += (self[place:found], new)
            place, limit = found + len(old), limit - 1
        return joined([*parts, self[place:]])

    def join(self, parts: Iterable[str], /) -> str:
        items = list(parts)
        plain(self).join(items)  # raises for what is not text
        return joined(items[index // 2] if index % 2 == 0 else self for index in range(2 * len(items) - 1))

    def center(self, width: SupportsIndex, fillchar: str = " ", /) -> str:
        padding = len(super().center(width, plain(fillchar))) - len(self)
        left = padding // 2 + (padding & width.__index__() & 1)
        return joined((fillchar * left, self, fillchar * (padding - left)))

    def ljust(self, width: SupportsIndex, fillchar: str = " ", /) -> str:
        return joined((self, fillchar * (len(super().ljust(width, plain(fillchar))) - len(self))))

    def rjust(self, width: SupportsIndex, fillchar: str = " ", /) -> str:
        return joined((fillchar * (len(super().rjust(width, plain(fillchar))) - len(self)), self))

    def upper(self) -> str:
        return in_other_case(self, str.upper)

    def lower(self) -> str:
        return in_other_case(self, str.lower)

    def casefold(self) -> str:
        return in_other_case(self, str.casefold)

    def swapcase(self) -> str:
        return in_other_case(self, str.swapcase)

    def capitalize(self) -> str:
        return in_other_case(self, str.capitalize)

    def title(self) -> str:
        return in_other_case(self, str.title)

    def _found(self, texts: list[str], *, backwards: bool = False) -> list[str]:
        """Texts that stand in this one in this order, not overlapping, with their spans."""
        parts: list[str] = []
        whole, place = plain(self), len(self) if backwards else 0
        for text in texts[::-1] if backwards else texts:
            # Only separators stand between the texts, and no text has one where it is split.
            start = whole.rindex(text, 0, place) if backwards else whole.index(text, place)
            parts.append(self[start : start + len(text)])
            place = start if backwards else start + len(text)
        return parts[::-1] if backwards else parts


class TemplateMarkup(Markup):
    """A text that a template marked as safe, and wrote itself in part. Only writing it keeps its spans."""

    __slots__ = ("_written",)
    _written: TemplateText

    @classmethod
    def of(cls, text: TemplateText) -> TemplateMarkup:
        made = cls(plain(text))
        made._written = text
        return made

    def __str__(self) -> str:
        return getattr(self, "_written", plain(self))  # Markup's own methods make values without it


def own(text: str) -> TemplateText:
    """A text that the template wrote."""
    return TemplateText(text, (Span(0, len(text)),) if text else ())


def own_spans(text: str) -> tuple[Span, ...]:
    """The spans of a text that the template wrote, ascending; empty for a plain str."""
    return text._own if isinstance(text, TemplateText) else ()


def is_own(text: str) -> bool:
    """Whether the template wrote all of a text."""
    return own_spans(text) == ((0, len(text)),)


def plain(text: str) -> str:
    """The same text as a plain str."""
    return str.__str__(text)


def joined(parts: Iterable[str]) -> str:
    """Texts one after the other, with their spans; a plain str if they have none."""
    items = list(parts)
    spans: list[Span] = []
    place = 0
    for item in items:
        if isinstance(item, TemplateText):
            for start, end in item._own:
                if spans and spans[-1].end == place + start:
                    spans[-1] = Span(spans[-1].start, place + end)
                else:
                    spans.append(Span(place + start, place + end))
        place += len(item)
    return _made("".join(items), tuple(spans))


def verified(whole: str, parts: Callable[[], Iterable[str]]) -> str:
    """The joined parts if they are the whole text; otherwise that text, as text of the request."""
    try:
        made = joined(parts())
    except (TypeError, ValueError, LookupError):
        return whole
    return made if made == whole else whole


def in_other_case(text: str, changed: Callable[[str], str]) -> str:
    """A text after an operation that changes letters' case; if their number changes, it is text of the request."""
    whole = changed(plain(text))
    return _made(whole, own_spans(text)) if len(whole) == len(text) else whole


def _made(text: str, spans: tuple[Span, ...]) -> str:
    return TemplateText(text, spans) if spans else text


def _clipped(spans: tuple[Span, ...], start: int, end: int) -> tuple[Span, ...]:
    """The parts of spans within [start, end), relative to start."""
    if len(spans) == 1 and spans[0].start <= start and end <= spans[0].end:
        return (Span(0, end - start),) if end > start else ()
    within = ((max(span.start, start), min(span.end, end)) for span in spans)
    return tuple(Span(first - start, last - start) for first, last in within if first < last)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not hasattr(value, "__html__")


_CONVERSION = re.compile(r"%(?:\(([^()]*)\))?[#0\- +]*\d*(?:\.\d*)?[hlL]?([diouxXeEfFgGcrsa%])")


def _printf(pattern: TemplateText, values: Any) -> Iterator[str]:
    """The parts of `pattern % values`: the pattern's own text, and the values."""
    positional = iter(values if isinstance(values, tuple) else (values,))
    place = 0
    for found in _CONVERSION.finditer(pattern):
        yield pattern[place : found.start()]
        place = found.end()
        if found[2] == "%":
            yield pattern[place - 1 : place]
            continue
        if found[1] is not None and isinstance(values, Mapping):
            value, conversion = values[found[1]], found[0].replace(f"({found[1]})", "")
        else:
            value, conversion = next(positional, None), found[0]
        yield value if conversion == "%s" and isinstance(value, TemplateText) else conversion % (value,)
    yield pattern[place:]
