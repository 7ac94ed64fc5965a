"""Copying: lists without meaning, to repeat or to look up. This is an exercise, not a task of the test.

Retrieval and tool calls copy over a long distance, once in hundreds of tokens. Here nearly every token is a copy over a
short distance, which teaches the layers to copy within a few hundred steps. Some lists must be written in another form,
as a tool call writes the content of a sentence: a word has other tokens without a space before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from infra.miniature import invented
from infra.miniature.conversation import Example, Json

_LETTERS = "abcdefghijklmnoprstuvwz"
_REPEAT = ("Repeat this: {items}", "Say it again: {items}", "{items}\nWrite that once more.")
_AGAIN = ("Again.", "Once more.", "And again, please.")
_REWRITE = ("{form}: {items}", "{items}\n{form}.", "Please write {form}: {items}")
FORMS: dict[str, Callable[[list[str]], str]] = {
    "as JSON": json.dumps,
    "line by line": "\n".join,
    "with commas": ", ".join,
    "with and": " and ".join,
    "in quotes": lambda items: " ".join(f'"{item}"' for item in items),
}
_THINGS = ("soup", "rice", "bread", "salad", "pasta", "tea", "red", "blue", "kitchen", "garden", "Monday", "Friday")
_FOLLOWING = ("{items}\nWhat comes after {item}?", "What follows {item} here? {items}")


def training_example(random: np.random.Generator) -> Example:
    """A list, and questions about it, one turn each."""
    kind = random.random()
    items = _items(random, int(random.integers(1, 6) if kind < 0.5 else random.integers(3, 8)))
    listed = ", ".join(items)
    messages: list[Json] = []
    if kind < 0.5:
        said = FORMS[invented.choice(random, ("with commas", "with and", "line by line"))](items)
        forms = [list(FORMS)[index] for index in random.permutation(len(FORMS))[:3]]
        for number, form in enumerate(forms):
            question = f"Now {form}."
            if number == 0:
                question = invented.choice(random, _REWRITE).format(form=form, items=said)
            messages += _turn(question, FORMS[form](items))
    elif kind < 0.8:
        messages += _turn(invented.choice(random, _REPEAT).format(items=listed), listed)
        for _ in range(int(random.integers(1, 3))):
            messages += _turn(invented.choice(random, _AGAIN), listed)
    else:
        for number, index in enumerate(random.permutation(len(items) - 1)[:6]):
            question = invented.choice(random, _FOLLOWING).format(items=listed, item=items[index])
            messages += _turn(question if number == 0 else f"And after {items[index]}?", items[index + 1])
    return Example("copying", tuple(messages))


def _turn(question: str, answer: str) -> list[Json]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _items(random: np.random.Generator, number: int) -> list[str]:
    """Different items: mostly names, and numbers, things and strings of letters."""
    items: dict[str, None] = {}
    while len(items) < number:
        kind = int(random.integers(5))
        letters = random.integers(len(_LETTERS), size=int(random.integers(3, 8)))
        word = "".join(_LETTERS[index] for index in letters)
        thing, name = invented.choice(random, _THINGS), invented.name(random, invented.MANY)
        items[(name, name, str(int(random.integers(10, 10000))), word, thing)[kind]] = None
    return list(items)
