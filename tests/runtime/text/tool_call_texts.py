"""Texts of answers with tool calls, right and wrong ones, and an account of every character of them.

A text is made of values, tags and mistakes. account() is a second reader: it follows the events through the text, and
fails if a character is neither in an event nor in the tags of a call or of thoughts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

from qwonnx.runtime.text.answer_events import (
    CallClosed,
    CallOpened,
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCall,
    with_whole_calls,
)
from qwonnx.runtime.text.output_parser import OutputParser

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {
                    "n": {"type": "integer"},
                    "s": {"type": "string"},
                    "o": {"properties": {"x": {"type": "integer"}}},
                    "l": {"$ref": "#/$defs/list~1of"},
                    "m": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                },
                "$defs": {"list/of": {"type": "array", "items": {"type": "integer"}}},
            },
        },
    },
    {"type": "function", "function": {"name": "free", "parameters": {"additionalProperties": {"type": "boolean"}}}},
    {"type": "function", "function": {"name": "none"}},
]

INNER = "<tool_call>\n<function=g>\n<parameter=z>\n1\n</parameter>\n</function>\n</tool_call>"
STRINGS = (
    *("x", "", "5", "two\nlines\n", "  blank ", "\n\n", "a </parameter> b", "a </function> b", "a </tool_call> b"),
    *("see <parameter=q> here", "see <tool_call> here", "call <function=f> so", "<think>x</think>", "a < b > c", "</"),
    *(INNER, f"before {INNER} after", "<function=none>\n</function>", "<tool_call><function=f></function></tool_call>"),
    *(
        "<function=f>\n<parameter=n>\n1\n</parameter>\n</function>",
        "use <parameter=n>1</parameter> like this",
        "é👩‍👧\u2028",
    ),
)
OTHERS = {
    "n": ("5", "-3", "5.0", "five", "007"),
    "o": ('{"x": 1}', "{}", "{'x': 1}"),
    "l": ("[1, 2]", "[]", "[1"),
    "m": ("2.5", "null", "None", "1e999"),
}


def parameter(key: str, value: str) -> str:
    return f"<parameter={key}>\n{value}\n</parameter>\n"


def function(body: str, name: str = "f") -> str:
    return f"<function={name}>\n{body}</function>\n"


def call(body: str, name: str = "f") -> str:
    return f"<tool_call>\n{function(body, name)}</tool_call>"


@dataclass(frozen=True, slots=True)
class Case:
    """An answer's text. calls: the names and arguments that are right; None if only the account matters."""

    text: str
    calls: list[tuple[str, dict[str, Any]]] | None
    thinking_open: bool = False


def cases(seed: int = 0) -> list[Case]:
    """Some hundred texts."""
    return [*_right(), *_mistakes(), *_shuffled(Random(seed), 160)]


def _right() -> Iterator[Case]:
    for value in STRINGS:
        yield Case(call(parameter("s", value)), [("f", {"s": value})])
        yield Case(
            f"Text.\n\n{call(parameter('n', '1') + parameter('s', value))}\n{call('', 'none')}\n",
            [("f", {"n": 1, "s": value}), ("none", {})],
        )
        yield Case(function(parameter("s", value) + parameter("n", "2")), [("f", {"s": value, "n": 2})])
        if "</think>" not in value:
            yield Case(f"Hm.\n{call(parameter('s', value))}", [("f", {"s": value})], thinking_open=True)
        yield Case(f"Hm.\n{call(parameter('s', value))}\n</think>\n\nYes", None, thinking_open=True)
    for key, values in OTHERS.items():
        for value in values:
            yield Case(call(parameter(key, value) + parameter("s", "x")), None)


def _mistakes() -> Iterator[Case]:
    yield from (Case(text, calls) for text, calls in _forgiven())
    s = parameter("s", "x")
    for text in (
        function(s, "made_up"),  # bare, and not offered
        call(s + s),  # a parameter twice
        call(s + parameter("s", INNER)),  # and no call in it
        call(s + "text\n"),
        '<tool_call>\n{"name": "f"}\n</tool_call>',
        "<tool_call>\n<function=f>\n<parameter=n>\n1\n</function>\n</tool_call>",
        call(s)[:50],
        f"<tool_call>\n<function=f>\n<parameter=s>\n{INNER}\nand",  # cut: what is in the value stays text
    ):
        yield Case(text, [])
    yield Case(f"Hm.\n{call(s, 'made_up')}", [], thinking_open=True)
    thoughts = f"Hm.\n{call(s)}\nMore.\n{function('', 'none')}Hm."
    yield Case(thoughts, [("f", {"s": "x"}), ("none", {})], thinking_open=True)
    yield Case(f"Hm.\n{call(s)}\n</think>\n\n{call(s)}", [("f", {"s": "x"})], thinking_open=True)
    for before, after in product(("", "\n", " \n"), ("", "\n\n", " !")):
        yield Case(f"Text{before}{call(s)}{after}", [("f", {"s": "x"})])
        yield Case(f"Text{before}<tool_call>{after}", [])
    for cut in range(0, len(call(s + s)), 7):
        yield Case(call("<parameter=n>\n1\n" + s)[:cut], None)


def _forgiven() -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    n, s = "<parameter=n>\n1\n", parameter("s", "x")
    only_s, n_and_s = ("f", {"s": "x"}), ("f", {"n": 1, "s": "x"})
    yield call(n + s), [n_and_s]  # </parameter> is missing
    yield call(s + n + parameter("m", "2.5")), [("f", {"s": "x", "n": 1, "m": 2.5})]
    yield call(n + "<parameter=s>\nx\n" + parameter("m", "null")), [("f", {"n": 1, "s": "x", "m": None})]
    yield call(n + "</parameter>\n</parameter>\n" + s), [n_and_s]  # it is doubled
    yield call(n + "</parameter>\n" + s + "</parameter>\n"), [n_and_s]
    yield f"<tool_call>\n<function=f>\n{s}</parameter>\n</tool_call>", [only_s]
    yield f"<tool_call>\n<function=f>\n{s}</tool_call>", [only_s]  # </function> is missing
    yield f"<tool_call>\n<function=f>\n{s}<function=none>\n</function>\n</tool_call>", [only_s, ("none", {})]
    yield f"<tool_call>\n{function(s)}{function('', 'made_up')}</tool_call>", [only_s, ("made_up", {})]
    yield f"{function(s)}</tool_call>\nDone.", [only_s]  # <tool_call> is missing
    yield f"<tool_call>\n{function(s)}", [only_s]
    yield f"<tool_call>\n{function(s)}\n\nDone.", [only_s]
    yield call(s, "made_up.name/of:it"), [("made_up.name/of:it", {"s": "x"})]
    yield call(parameter("a", "true") + parameter("b", "maybe"), "free"), [("free", {"a": True, "b": "maybe"})]
    spoken = (parameter("n", "1") + parameter("m", "2")).rstrip()
    yield call(parameter("s", spoken)), [("f", {"s": spoken})]
    spoken = "of <parameter=n> and"
    yield call(parameter("s", spoken) + parameter("n", "1")), [("f", {"s": spoken, "n": 1})]


PIECES = (
    *("<tool_call>", "</tool_call>", "<function=f>", "<function=none>", "<function=made_up>", "</function>"),
    *("<parameter=n>", "<parameter=s>", "<parameter=q>", "</parameter>", "</parameter>", "</think>", "<think>"),
    *("\n", "\n", " ", "7", "a", "<", "</func", "é"),
)


def _shuffled(random: Random, count: int) -> Iterator[Case]:
    for _ in range(count):
        text = "".join(random.choice(PIECES) for _ in range(random.randint(3, 24)))
        if random.random() < 0.7:
            text = random.choice((text + call(parameter("s", "x")), call(parameter("s", text)), call(text)))
        yield Case(text, None, thinking_open=random.random() < 0.4)


def parse(pieces: list[str], thinking_open: bool, tools: list[dict[str, Any]] | None = TOOLS) -> list[Joined]:
    """The events of an answer that comes in these pieces; texts of one kind that follow each other are joined."""
    parser = OutputParser(thinking_open, tools)
    events = [event for piece in pieces for event in parser.push(piece)]
    events += parser.finish()
    assert all(isinstance(event, CallOpened | CallClosed) or event.text for event in events)
    return merged(events)


Joined = ReasoningDelta | ContentDelta | ToolCall


def merged(events: list[Event]) -> list[Joined]:
    """Join each call, and adjacent deltas of one kind; streaming may change nothing else."""
    joined: list[Joined] = []
    for event in with_whole_calls(events):
        last = joined[-1] if joined else None
        if isinstance(event, ReasoningDelta) and isinstance(last, ReasoningDelta):
            joined[-1] = ReasoningDelta(last.text + event.text)
        elif isinstance(event, ContentDelta) and isinstance(last, ContentDelta):
            joined[-1] = ContentDelta(last.text + event.text)
        else:
            joined.append(event)
    return joined


def account(text: str, events: list[Joined]) -> None:
    """Follow the events through the text; what stands between them must be tags of thoughts or calls.

    Raises:
        AssertionError: a character is not accounted for, or an event is not in the text.
    """
    ends = {0}
    for event in events:
        ends = {end for start in ends for end in _ends_after(text, start, event)}
        assert ends, f"{event} is not there"
    assert any(_BETWEEN.fullmatch(text, end) for end in ends), f"lost: {[text[end:] for end in ends]}"


# Between events: closing tags and line breaks, or the tags of thoughts.
_BETWEEN = re.compile(r"\s*(?:</tool_call>\s*)?\n*(?:<think>\n*)?(?:\n*</think>\n*)?\n*")


def _ends_after(text: str, start: int, event: Joined) -> Iterator[int]:
    gaps = (_BETWEEN.fullmatch(text, start, end) for end in range(start, len(text) + 1))
    for gap in (found.end() for found in gaps if found is not None):
        if not isinstance(event, ToolCall):
            if text.startswith(event.text, gap):
                yield gap + len(event.text)
            continue
        opening = re.compile(r"(?:<tool_call>\s*)?<function=\s*" + re.escape(event.name) + r"\s*>").match(text, gap)
        if opening is not None:
            yield from _after_arguments(text, opening.end(), list(json.loads(event.arguments_json).items()))


def _after_arguments(text: str, start: int, arguments: list[tuple[str, Any]]) -> Iterator[int]:
    if not arguments:
        end = re.compile(r"\s*(?:</function>)?").match(text, start)
        assert end is not None
        yield end.end()
        return
    (key, value), *rest = arguments
    opening = re.compile(r"\s*<parameter=\s*" + re.escape(key) + r"\s*>").match(text, start)
    if opening is None:
        return
    for place in re.compile(r"(?=\n?</parameter>|\n?<parameter=)").finditer(text, opening.end()):
        closing = re.compile(r"\n?(?:</parameter>\s*)*").match(text, place.start())
        assert closing is not None
        raw = text[opening.end() : place.start()].removeprefix("\n")
        for whole in {raw, raw.removesuffix("\n")}:
            if whole == value or (not isinstance(value, str) and _reads(whole, value)):
                yield from _after_arguments(text, closing.end(), rest)


def _reads(text: str, value: Any) -> bool:
    constants = {"None": None, "True": True, "False": False}
    try:
        return bool((constants[text.strip()] if text.strip() in constants else json.loads(text)) == value)
    except ValueError:
        return False
