"""Tool calls: the model answers a request with one or two calls, and the tools' responses with an answer.

The offered tools, their order and all values are random. Phrasings of the requests and invented names (invented.py) are
held out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from infra.miniature import invented
from infra.miniature.conversation import Example, Json
from infra.miniature.toolbox import TOOLS, Tool, Values

# Words for a boolean in a request, which does not say True or False.
_SPOKEN = {
    "outdoor": ("outside", "inside"),
    "shuffle": ("in any order", "in order"),
    "direct": ("without a stop", "with stops"),
}


@dataclass(frozen=True, slots=True)
class _Manner:
    """How conversations are drawn.

    Attributes:
        phrasings: of each tool's requests.
        endings: of invented names.
        pairs: share of requests that need two calls.
    """

    phrasings: Sequence[tuple[str, ...]]
    endings: Sequence[str]
    pairs: float


# The model learns last which tool the second call of a pair needs, so training has more pairs.
_TRAINING = _Manner([tool.phrasings() for tool in TOOLS], invented.MANY, 0.65)
_VOCABULARY = _Manner([tool.requests for tool in TOOLS], invented.FEW, 0.3)
_HELD_OUT = _Manner([tool.held_out for tool in TOOLS], invented.HELD_OUT, 0.3)


def training_example(random: np.random.Generator, *, varied: bool = True, requests: int | None = None) -> Example:
    """A conversation of one to four requests, each with its calls, responses and answer.

    Args:
        varied: all phrasings, names and numbers of requests that are for training; if false, those of the vocabulary's
            texts.
        requests: how many, instead of a random number.
    """
    drawn = int(random.integers(1, 5 if varied else 4))
    manner = _TRAINING if varied else _VOCABULARY
    return _conversation(random, drawn if requests is None else requests, manner, thinking=bool(random.random() < 0.4))


def held_out(number: int, seed: int, *, thinking: bool = False) -> Iterator[Example]:
    """Conversations of one request in a held-out phrasing; the last turn is the call or the answer."""
    random = np.random.default_rng([seed, 12])
    for index in range(number):
        example = _conversation(random, 1, _HELD_OUT, thinking=thinking)
        if index % 2:
            yield example
        else:  # up to the call
            yield Example(example.task, example.messages[:2], example.tools, thinking=thinking)


def _conversation(random: np.random.Generator, number: int, manner: _Manner, *, thinking: bool) -> Example:
    """`number` requests for some of the tools."""
    chosen = random.permutation(len(TOOLS)).tolist()[: int(random.integers(1, 4))]
    messages: list[Json] = []
    for _ in range(number):
        messages += _exchange(random, chosen, manner, thinking)
    return Example("tools", tuple(messages), tuple(TOOLS[index].definition() for index in chosen), thinking=thinking)


def _exchange(random: np.random.Generator, offered: Sequence[int], manner: _Manner, thinking: bool) -> Iterator[Json]:
    """A request for some of the offered tools (by index), the calls, the responses and the answer."""
    asked = [offered[int(random.integers(len(offered)))] for _ in range(1 + int(random.random() < manner.pairs))]
    used = [TOOLS[index] for index in asked]
    values = [{name: draw(random, manner.endings) for name, draw in tool.draws.items()} for tool in used]
    responses = [{name: draw(random, manner.endings) for name, draw in tool.response.items()} for tool in used]
    requests = [
        invented.choice(random, manner.phrasings[index]).format(**_spoken(arguments))
        for index, arguments in zip(asked, values, strict=True)
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
