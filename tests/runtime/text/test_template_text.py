"""Texts that know their spans: every operation gives what str's gives, and each character keeps who wrote it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from qwonnx.runtime.text.template_text import Span, TemplateText, is_own, joined, own, own_spans, plain

pytestmark = pytest.mark.fast

# The template writes capital letters, the request writes small ones, so a result's spans can be read from its letters.
PART = st.text(alphabet="AB ,\n", max_size=4).map(own) | st.text(alphabet="ab.;", max_size=4)
TEXT = st.lists(PART, max_size=6).map(joined)

OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "add": lambda t: t + "ab" + own("AB") + t,
    "radd": lambda t: "ab" + t,
    "times": lambda t: 2 * t + t * 2,
    "slice": lambda t: t[1:-1],
    "steps": lambda t: t[::-2],
    "first": lambda t: t[:1] and t[0] + t[-1],
    "characters": lambda t: joined(t),
    "split": lambda t: joined(t.split()),
    "split at": lambda t: joined(t.split(own("A"), 1)),
    "rsplit": lambda t: joined(t.rsplit(None, 1)),
    "rsplit at": lambda t: joined(t.rsplit("a", 2)),
    "lines": lambda t: joined(t.splitlines()),
    "lines with ends": lambda t: joined(t.splitlines(True)),
    "partition": lambda t: joined(t.partition("b")),
    "partition at own": lambda t: joined(t.partition(own("B"))),
    "rpartition": lambda t: joined(t.rpartition("a")),
    "strip": lambda t: t.strip(),
    "lstrip": lambda t: t.lstrip("Aa "),
    "rstrip": lambda t: t.rstrip("\n"),
    "prefix": lambda t: t.removeprefix("A").removesuffix("b").removesuffix(""),
    "replace": lambda t: t.replace("a", own("BB")),
    "replace once": lambda t: t.replace(own("A"), "bb", 1),
    "replace nothing": lambda t: t.replace("", own("A"), 3),
    "replace all of nothing": lambda t: t.replace("", own("A")),
    "join": lambda t: TemplateText(t, own_spans(t)).join(["a", own("A"), t]),
    "center": lambda t: TemplateText(t, own_spans(t)).center(9, own("A")),
    "ljust": lambda t: t.ljust(9, "a"),
    "rjust": lambda t: t.rjust(8, "b"),
}


@pytest.mark.parametrize("name", OPERATIONS)
@given(text=TEXT)
def test_an_operation_gives_what_it_gives_for_a_str_and_keeps_who_wrote_it(name: str, text: str) -> None:
    found = OPERATIONS[name](TemplateText(text, own_spans(text)))
    assert plain(found) == plain(OPERATIONS[name](plain(text)))
    spans = own_spans(found)
    assert all(before.end < after.start for before, after in pairwise(spans))
    written = {place for span in spans for place in range(*span)}
    for place, character in enumerate(plain(found)):
        if character not in " \n":  # str pads with spaces
            assert (place in written) == (character in "AB,")


@pytest.mark.parametrize("method", ["upper", "lower", "casefold", "swapcase", "capitalize", "title"])
@pytest.mark.parametrize("text", ["x y", "straße ﬁ", "İ"])
def test_a_change_of_case_keeps_spans_if_the_characters_stay_as_many(method: str, text: str) -> None:
    found = getattr(own(text), method)()
    assert plain(found) == getattr(text, method)()
    assert is_own(found) == (len(found) == len(text))


def test_what_is_not_known_is_text_of_the_request() -> None:
    text = own("<|x|>")
    for made in (text.translate({60: "["}), text.zfill(9), text.expandtabs(), repr(text), text.encode().decode()):
        assert own_spans(made) == ()
    assert own_spans(TemplateText("abc")) == ()
    assert own("") == TemplateText("") == ""


def test_markup_escapes_as_ever() -> None:
    assert own("<b>") + Markup("<i>") == Markup("&lt;b&gt;<i>")
    assert Markup("<i>") + own("<b>") == Markup("<i>&lt;b&gt;")


def test_str_of_a_text_is_the_text() -> None:
    text = own("A") + "b"
    assert str(text) is text
    assert own_spans(str(text)) == (Span(0, 1),)
    assert hash(text) == hash("Ab")
    assert {text: 1}["Ab"] == 1
