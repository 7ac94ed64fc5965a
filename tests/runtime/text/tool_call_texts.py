"""Texts of answers with tool calls, right and wrong ones, by feature: made of values, tags and mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

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
                    "u": {"type": ["string", "integer"]},
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
    "u": ("5", "five", "null", "5\n"),
}


def parameter(key: str, value: str) -> str:
    return f"<parameter={key}>\n{value}\n</parameter>\n"


def function(body: str, name: str = "f") -> str:
    return f"<function={name}>\n{body}</function>\n"


def call(body: str, name: str = "f") -> str:
    return f"<tool_call>\n{function(body, name)}</tool_call>"


@dataclass(frozen=True, slots=True)
class Case:
    """An answer's text.

    calls: the names and arguments that are right, if the model ended the answer; None if only the account matters.
    """

    feature: str
    text: str
    calls: list[tuple[str, dict[str, Any]]] | None
    thinking_open: bool = False

    @property
    def id(self) -> str:
        return f"{self.feature}: {self.text[:40]!r}"


def cases(seed: int = 0) -> list[Case]:
    """Some hundred texts."""
    return [*_reported(), *_right(), *_thoughts(), *_forgiven(), *_opened(), *_texts(), *_shuffled(Random(seed), 160)]


def _reported() -> Iterator[Case]:
    """What failed elsewhere, by the number of its report."""
    s, x = parameter("s", "x"), ("f", {"s": "x"})
    # A call in thoughts was lost.
    yield Case("vllm#39056", f"I finish.\n{call(parameter('n', '204'))}", [("f", {"n": 204})], thinking_open=True)
    yield Case("vllm#39056", f"I finish.\n{call(parameter('n', '204'))}\n</think>\n", [], thinking_open=True)
    # A parameter whose tag is damaged made arguments that do not end.
    command = "timeout 7\n7\n</parameter>\n<parameter=\necho A=$B; echo C"
    yield Case("vllm#55495", call(parameter("s", command)), [("f", {"s": command})])
    yield Case("vllm#55495", call(parameter("s", command))[:-40], None)
    for damaged in (
        "<parameter=l: [1, 2]\n</parameter>",
        "<parameter=\n5\n</parameter>",
        "<parameter>\n5\n</parameter>",
    ):
        yield Case("vllm#55497", call(f"{s}{damaged}\n{parameter('m', '2.5')}"), None)
        yield Case("vllm#55497", call(f"{parameter('l', '[1]')}{damaged}\n{parameter('m', '2.5')}"), None)
    yield Case("vllm#55497", call(s + "<parameter=note=>\n</parameter>\n"), [("f", {"s": "x", "note=": ""})])
    # </parameter> was written twice.
    yield Case("llama.cpp#24807", call(f"<parameter=s>\nx\n</parameter>\n{s[-13:]}{parameter('n', '1')}"), None)
    yield Case("llama.cpp#24807", call(s + "</parameter>\n" + parameter("n", "1")), [("f", {"s": "x", "n": 1})])
    yield Case("llama.cpp#24807", call(parameter("n", "1") + s + "</parameter>\n"), [("f", {"n": 1, "s": "x"})])
    # Objects in an array: a part of a call reached the client.
    todos = '[{"id": 1, "what": "a"}, {"id": 2, "what": "</b>"}]'
    yield Case("llama.cpp#21771", call(parameter("o", todos)), None)
    yield Case("llama.cpp#21771", call(parameter("s", todos)), [("f", {"s": todos})])
    yield Case("llama.cpp#21771", call(parameter("free", todos) + s, "any"), [("any", {"free": todos, "s": "x"})])
    yield Case("llama.cpp#21771", call(parameter("l", "[1, 2"))[:-45], None)
    # Text that speaks of the tag silenced the stream.
    prose = "The tag `<tool_call>` begins a call, and <tool_call>\n is text here.\n"
    yield Case("club-3090#72", prose, [])
    yield Case("club-3090#72", f"{prose}\n{call(s)}", [x])
    yield Case(
        "club-3090#72", f"Think of <tool_call> and <function=f> too.\n</think>\n\n{prose}", [], thinking_open=True
    )
    # An answer that ends in a call was an error of the server.
    yield Case("ollama#14492", call(s).removesuffix("</tool_call>"), [x])
    yield Case("ollama#14492", call(s).removesuffix("</function>\n</tool_call>"), [x])
    yield Case("ollama#14492", "<tool_call>\n<function=f>\n<parameter=s>\nx", [x])
    yield Case("ollama#14492", "<tool_call>\n<function=f>\n", [])
    yield Case("ollama#14492", "<tool_call>", [])


def _right() -> Iterator[Case]:
    for value in STRINGS:
        yield Case("a string", call(parameter("s", value)), [("f", {"s": value})])
        text = f"Text.\n\n{call(parameter('n', '1') + parameter('s', value))}\n{call('', 'none')}\n"
        yield Case("text and two calls", text, [("f", {"n": 1, "s": value}), ("none", {})])
        bare = function(parameter("s", value) + parameter("n", "2"))
        yield Case("a function alone", bare, [("f", {"s": value, "n": 2})])
    for key, values in OTHERS.items():
        for value in values:
            yield Case("a type", call(parameter(key, value) + parameter("s", "x")), None)
            yield Case("a type", call(parameter("s", "x") + parameter(key, value)), None)
    both = parameter("u", "5") + parameter("s", "5")
    yield Case("a string or a number", call(both), [("f", {"u": 5, "s": "5"})])
    yield Case("a string or a number", call(parameter("u", "five")), [("f", {"u": "five"})])
    yield Case("a made-up name", call(parameter("s", "x"), "a.name/of:it"), [("a.name/of:it", {"s": "x"})])
    two = parameter("a", "true") + parameter("b", "maybe")
    yield Case("any parameter", call(two, "free"), [("free", {"a": True, "b": "maybe"})])
    for before, after in product(("", "\n", " \n"), ("", "\n\n", " !")):
        yield Case("line breaks", f"Text{before}{call(parameter('s', 'x'))}{after}", [("f", {"s": "x"})])


def _thoughts() -> Iterator[Case]:
    s, x = parameter("s", "x"), ("f", {"s": "x"})
    for value in STRINGS:
        if "</think>" not in value:
            text = f"Hm.\n{call(parameter('s', value))}"
            yield Case("a call in thoughts that do not end", text, [("f", {"s": value})], thinking_open=True)
        text = f"Hm.\n{call(parameter('s', value))}\n</think>\n\nYes"
        calls: list[Any] | None = None if "</think>" in value else []
        yield Case("a call in thoughts", text, calls, thinking_open=True)
    yield Case("a made-up name in thoughts", f"Hm.\n{call(s, 'made_up')}", [], thinking_open=True)
    text = f"Hm.\n{call(s)}\nMore.\n{function('', 'none')}Hm."
    yield Case("two calls in thoughts", text, [x, ("none", {})], thinking_open=True)
    yield Case("a call in thoughts and one after", f"Hm.\n{call(s)}\n</think>\n\n{call(s)}", [x], thinking_open=True)
    for incomplete in (call(s)[:-30], call(s + s), call(s)[:45]):
        yield Case("no call in thoughts", f"Hm.\n{incomplete}", [], thinking_open=True)


def _forgiven() -> Iterator[Case]:
    n, s = "<parameter=n>\n1\n", parameter("s", "x")
    only_s, n_and_s = ("f", {"s": "x"}), ("f", {"n": 1, "s": "x"})
    for text, calls in (
        (call(n + s), [n_and_s]),
        (call(s + n + parameter("m", "2.5")), [("f", {"s": "x", "n": 1, "m": 2.5})]),
        (call(n + "<parameter=s>\nx\n" + parameter("m", "null")), [("f", {"n": 1, "s": "x", "m": None})]),
        (call("<parameter=s>\nx\n" + n + parameter("m", "2.5")), [("f", {"s": "x", "n": 1, "m": 2.5})]),
    ):
        yield Case("no </parameter> before a parameter", text, calls)
    for text in (call(n + "</parameter>\n</parameter>\n" + s), call(n + "</parameter>\n" + s + "</parameter>\n")):
        yield Case("</parameter> twice", text, [n_and_s])
    yield Case("</parameter> twice", f"<tool_call>\n<function=f>\n{s}</parameter>\n</tool_call>", [only_s])
    yield Case("no </function>", f"<tool_call>\n<function=f>\n{s}</tool_call>", [only_s])
    text = f"<tool_call>\n<function=f>\n{s}<function=none>\n</function>\n</tool_call>"
    yield Case("no </function>", text, [only_s, ("none", {})])
    text = f"<tool_call>\n{function(s)}{function('', 'made_up')}</tool_call>"
    yield Case("two functions", text, [only_s, ("made_up", {})])
    yield Case("no <tool_call>", f"{function(s)}</tool_call>\nDone.", [only_s])
    yield Case("no </tool_call>", f"<tool_call>\n{function(s)}", [only_s])
    yield Case("no </tool_call>", f"<tool_call>\n{function(s)}\n\nDone.", [only_s])
    spoken = (parameter("n", "1") + parameter("m", "2")).rstrip()
    yield Case("parameters in a value", call(parameter("s", spoken)), [("f", {"s": spoken})])
    spoken = "of <parameter=n> and"
    given = parameter("n", "1") + parameter("s", spoken) + parameter("m", "2")
    yield Case("a parameter in a value", call(given), [("f", {"n": 1, "s": spoken, "m": 2})])
    calls = [("f", {"s": spoken, "n": 1})]
    yield Case("a parameter in a value", call(parameter("s", spoken) + parameter("n", "1")), calls)


def _opened() -> Iterator[Case]:
    """Calls that are certain before their end, and then not as they should be."""
    s, x = parameter("s", "x"), ("f", {"s": "x"})
    yield Case("a parameter twice", call(s + s), [x])
    yield Case(
        "a parameter twice", call(parameter("n", "1") + s + s + parameter("m", "2")), [("f", {"n": 1, "s": "x"})]
    )
    yield Case("a call in a parameter given twice", call(s + parameter("s", INNER)), [x])
    yield Case("a parameter without a name", call(s + "<parameter= >\n1\n</parameter>\n"), [x])
    yield Case("text after a value", call(s + "text\n"), [("f", {"s": "x\n</parameter>\ntext"})])
    yield Case("no </parameter> at the end", call("<parameter=s>\nx\n"), [x])
    yield Case("no </parameter> at the end", call("<parameter=s>\nx\n").removesuffix("\n</tool_call>"), [x])
    yield Case("no </parameter> at the end", "<tool_call>\n<function=f>\n<parameter=s>\nx\n</tool_call>", [x])
    text = f"<tool_call>\n<function=f>\n<parameter=s>\n{INNER}\nand"
    yield Case("an end in a value that holds a call", text, [("f", {"s": f"{INNER}\nand"})])
    for mention in (
        "<function=f>\n<parameter=n>",
        "<function=f>\n<parameter=n>\n1",
        "<tool_call>\n<function=f>\n<parameter=q>\n1",
        f"<tool_call>\n<function=g>\n<parameter=n>\n{INNER}, {INNER}",
    ):
        for value in (mention, f"Write {mention} then"):
            yield Case("a call that is begun in a value", call(parameter("s", value)), [("f", {"s": value})])
            text = call(parameter("l", value) + parameter("s", "y"))
            yield Case("a call that is begun in a value", text, [("f", {"l": value, "s": "y"})])
    for cut in range(0, len(call(s + s)), 7):
        yield Case("an end in a call", call("<parameter=n>\n1\n" + s)[:cut], None)
        yield Case("an end in a call", call(s + parameter("l", "[1, 2]"))[:cut], None)


def _texts() -> Iterator[Case]:
    """What is no call."""
    n, s = parameter("n", "1"), parameter("s", "x")
    for text in (
        function(s, "made_up"),  # bare, and not offered
        call(n + n),  # a parameter twice, before anything was certain
        call(parameter("s", "") + parameter("s", INNER)),  # and no call in it
        call("<parameter= >\n1\n</parameter>\n" + s),
        call(s, " "),
        '<tool_call>\n{"name": "f"}\n</tool_call>',
        "<tool_call>\n<function=f>\ntext\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=n>\n1\n</function>\n</tool_call>",
        f"<tool_call>\n<function=f>\n<parameter=n>\n{INNER}\nand",
        call(n)[:50],
    ):
        yield Case("no call", text, [])
    for before, after in product(("", "\n", " \n"), ("", "\n\n", " !")):
        yield Case("no call", f"Text{before}<tool_call>{after}", [])


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
        yield Case("at random", text, None, thinking_open=random.random() < 0.4)
