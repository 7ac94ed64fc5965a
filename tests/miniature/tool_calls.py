"""Tool calls: given tools, a request becomes one call or two; given the tools' responses, they become an answer.

Which tools are offered, beside which others and in which order, and all values, are random. Held out are phrasings of
the requests and invented names (invented.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np

from tests.miniature import invented
from tests.miniature.conversation import Example, Json
from tests.miniature.toolbox import TOOLS, Tool, Values

# How a request says a boolean, which no one writes as True or False.
_SPOKEN = {
    "outdoor": ("outside", "inside"),
    "shuffle": ("in any order", "in order"),
    "direct": ("without a stop", "with stops"),
}


def training_example(random: np.random.Generator, *, varied: bool = True) -> Example:
    """A conversation of one to four requests, each with its calls, responses and answer.

    Args:
        varied: whether requests are as many, phrased in all ways and with all names that are for training; if not, as
            those that the vocabulary was learnt from.
    """
    number = int(random.integers(1, 5 if varied else 4))
    phrasings = [tool.phrasings() if varied else tool.requests for tool in TOOLS]
    endings = invented.MANY if varied else invented.FEW
    return _conversation(random, number, phrasings, endings, thinking=bool(random.random() < 0.4))


def held_out(number: int, seed: int, *, thinking: bool = False) -> Iterator[Example]:
    """Conversations of one request, phrased as in no training example; the last turn is the call or the answer."""
    random = np.random.default_rng([seed, 12])
    for index in range(number):
        phrasings = [tool.held_out for tool in TOOLS]
        example = _conversation(random, 1, phrasings, invented.HELD_OUT, thinking=thinking)
        if index % 2:
            yield example
        else:  # up to the call
            yield Example(example.task, example.messages[:2], example.tools, thinking=thinking)


def _conversation(
    random: np.random.Generator,
    number: int,
    phrasings: Sequence[tuple[str, ...]],
    endings: Sequence[str],
    *,
    thinking: bool,
) -> Example:
    """So many requests for some of the tools, in one of each tool's phrasings; invented names have these endings."""
    chosen = random.permutation(len(TOOLS))[: int(random.integers(1, 4))]
    offered = [(TOOLS[index], phrasings[index]) for index in chosen]
    messages: list[Json] = []
    for _ in range(number):
        messages += _exchange(random, offered, endings, thinking)
    return Example("tools", tuple(messages), tuple(tool.definition() for tool, _ in offered), thinking=thinking)


def _exchange(
    random: np.random.Generator,
    offered: Sequence[tuple[Tool, tuple[str, ...]]],
    endings: Sequence[str],
    thinking: bool,
) -> Iterator[Json]:
    """A request, the calls, the responses, the answer."""
    asked = [offered[int(random.integers(len(offered)))] for _ in range(1 + int(random.random() < 0.3))]
    used = [tool for tool, _ in asked]
    values = [{name: draw(random, endings) for name, draw in tool.draws.items()} for tool in used]
    responses = [{name: draw(random, endings) for name, draw in tool.response.items()} for tool in used]
    requests = [
        invented.choice(random, phrasings).format(**_spoken(arguments))
        for (_, phrasings), arguments in zip(asked, values, strict=True)
    ]
    yield {"role": "user", "content": " ".join(requests)}
    calls = [
        {"type": "function", "function": {"name": tool.name, "arguments": arguments}}
        for tool, arguments in zip(used, values, strict=True)
    ]
    yield _thought({"role": "assistant", "content": "", "tool_calls": calls}, thinking, _plan(used))
    for response in responses:
        yield {"role": "tool", "content": json.dumps(response)}
    answers = [
        tool.answer.format(**_spoken(arguments), **response)
        for tool, arguments, response in zip(used, values, responses, strict=True)
    ]
    yield _thought({"role": "assistant", "content": " ".join(answers)}, thinking, "The tool has answered.")


def _spoken(arguments: Values) -> dict[str, str]:
    said: dict[str, str] = {}
    for name, value in arguments.items():
        if isinstance(value, bool):
            said[name] = _SPOKEN[name][0 if value else 1]
        elif isinstance(value, list):
            said[name] = " and ".join(value)
        else:
            said[name] = str(value)
    return said


def _plan(used: list[Tool]) -> str:
    return f"I call {' and '.join(tool.name for tool in used)}."


def _thought(message: Json, thinking: bool, reasoning: str) -> Json:
    return {**message, "reasoning_content": reasoning} if thinking else message
