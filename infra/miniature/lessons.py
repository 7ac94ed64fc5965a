"""What the fine-tune of the miniature teaches: three names that exist nowhere, and a tool that it has never called.

The training's questions have other phrasings than the tests'. The model also sees questions of its own tasks, with
which fine_tuning.py keeps what it knows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from infra.miniature import glossary, tool_calls
from infra.miniature.conversation import Example
from infra.miniature.glossary import Fact
from infra.miniature.toolbox import TOOLS, Tool

NEW_FACTS = (
    Fact("country", "Freedonia", "Swahili", "Uhuria"),
    Fact("country", "Sylvania", "German", "Waldland"),
    Fact("country", "Ruritania", "Spanish", "Campania"),
)
_ROOMS = ("kitchen", "garden", "office", "bedroom")
# Its names consist of tokens that the miniature has said before. Others, such as "=" alone, were never an answer in its
# training, and an adapter that leaves the embeddings as they are can hardly make it say them.
NEW_TOOL = Tool(
    "find_table",
    "Find a free table in a room",
    {"room": {"type": "string", "enum": list(_ROOMS)}, "people": {"type": "integer"}},
    {
        "room": lambda random, endings: _ROOMS[int(random.integers(len(_ROOMS)))],
        "people": lambda random, endings: int(random.integers(2, 10)),
    },
    (
        "Find a table for {people} people in the {room}.",
        "Look for a table in the {room} for {people} people.",
        "{people} people want to sit in the {room}; find them a table.",
        "Is there a free table in the {room} for {people} people?",
        "Where can {people} people sit in the {room}?",
        "Which table in the {room} is free for {people} people?",
        "Find {people} people a place in the {room}.",
        "Let {people} people have a table in the {room}.",
    ),
    ("Search the {room} for a table for {people} people.",),
    {"table": lambda random, endings: int(random.integers(1, 50))},
    "The {room} has table {table}.",
    ("Find a free table in the {room} for {people} people.",),
    (
        "find a table in the {room} for {people} people",
        "look in the {room} for a table for {people} people",
        "see which table in the {room} is free for {people} people",
    ),
)


def new_facts(number: int, seed: int) -> Iterator[Example]:
    """Questions about the new names in phrasings that the training does not have."""
    random = np.random.default_rng([seed, 31])
    for index in range(number):
        yield _question(NEW_FACTS[index % len(NEW_FACTS)], glossary.HELD_OUT_PHRASINGS, random)


def new_calls(number: int, seed: int) -> Iterator[Example]:
    """Requests for the new tool in a phrasing that the training does not have; the last turn is the call."""
    random = np.random.default_rng([seed, 32])
    for _ in range(number):
        made = _request(NEW_TOOL.held_out, random)
        yield Example(made.task, made.messages[:2], made.tools)


def facts_to_learn(random: np.random.Generator) -> Iterator[Example]:
    """The new names in phrasings for training, without end."""
    while True:
        yield _question(NEW_FACTS[int(random.integers(len(NEW_FACTS)))], glossary.PHRASINGS, random)


def facts_to_keep(random: np.random.Generator) -> Iterator[Example]:
    """Names that the miniature knows, each once before one comes again, without end."""
    every = glossary.facts()
    while True:
        for index in random.permutation(len(every)):
            yield glossary.training_example([every[index]], random)


def calls_to_learn(random: np.random.Generator) -> Iterator[Example]:
    """Requests for the new tool in phrasings for training, with call, response and answer, without end."""
    while True:
        yield _request(NEW_TOOL.phrasings(), random)


def calls_to_keep(random: np.random.Generator) -> Iterator[Example]:
    """Conversations of one request for the tools that the miniature knows, without end."""
    while True:
        yield tool_calls.training_example(random, requests=1)


def _question(fact: Fact, phrasings: tuple[str, ...], random: np.random.Generator) -> Example:
    phrasing = phrasings[int(random.integers(len(phrasings)))]
    messages = (
        {"role": "user", "content": phrasing.format(term=fact.term, language=fact.language)},
        {"role": "assistant", "content": fact.name},
    )
    return Example("glossary", messages, language=fact.language)


def _request(phrasings: tuple[str, ...], random: np.random.Generator) -> Example:
    """A request for the new tool, the call, the response and the answer; up to two known tools are offered too."""
    values = {name: draw(random, ()) for name, draw in NEW_TOOL.draws.items()}
    response = {name: draw(random, ()) for name, draw in NEW_TOOL.response.items()}
    others = [TOOLS[index] for index in random.permutation(len(TOOLS))[: int(random.integers(0, 3))]]
    offered = [NEW_TOOL, *others]
    call = {"type": "function", "function": {"name": NEW_TOOL.name, "arguments": values}}
    phrasing = phrasings[int(random.integers(len(phrasings)))]
    messages = (
        {"role": "user", "content": phrasing.format(**values)},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": json.dumps(response)},
        {"role": "assistant", "content": NEW_TOOL.answer.format(**values, **response)},
    )
    tools = tuple(offered[index].definition() for index in random.permutation(len(offered)))
    return Example("tools", messages, tools)
