"""Retrieval over length: notes about places among filler sentences, and questions about them at the end.

Names of places are pairs of adjective and noun; a hash selects the held-out ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from infra.miniature import invented
from infra.miniature.conversation import Example, Json

_ADJECTIVES = (
    "amber", "ancient", "broken", "crooked", "distant", "empty", "frozen", "gentle", "hidden", "iron", "little",
    "marble", "narrow", "painted", "quiet", "rusty", "silver", "sunken", "velvet", "wooden",
)  # fmt: skip
_NOUNS = (
    "bridge", "castle", "cellar", "chapel", "factory", "harbour", "island", "library", "lighthouse", "market", "mill",
    "museum", "orchard", "palace", "station", "temple", "theatre", "tower", "tunnel", "village",
)  # fmt: skip
_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
_SUBJECTS = (
    "The old man",
    "A child",
    "The teacher",
    "My neighbour",
    "The cat",
    "A stranger",
    "The baker",
    "Her sister",
)
_VERBS = ("walked to", "looked at", "talked about", "forgot", "remembered", "painted", "sold", "counted")
_OBJECTS = ("the river", "the garden", "a letter", "the bread", "the boats", "a song", "the window", "the stairs")
_ENDINGS = ("in the morning", "after lunch", "without a word", "every day", "in the rain", "once again", "very slowly")
_OPENING = "Read this and answer the questions.\n"

# A note about a place, its question, and its possible values.
_NOTES = (
    ("The code of the {place} is {value}.", "What is the code of the {place}?"),
    ("The owner of the {place} is {value}.", "Who is the owner of the {place}?"),
    ("The door of the {place} is {value}.", "Which colour is the door of the {place}?"),
)


def training_example(
    random: np.random.Generator,
    count_tokens: Callable[[str], int],
    length: int,
    *,
    varied: bool = True,
) -> Example:
    """A text of about `length` tokens with many notes, and as many questions about them, one turn each.

    Args:
        varied: all names that are for training; if false, those of the vocabulary's texts.
    """
    number = max(2, min(8, length // 48))
    endings = invented.MANY if varied else invented.FEW
    return _example(random, count_tokens, length, endings, number=number, held_out=False, thinking=False)


def held_out(
    number: int, seed: int, count_tokens: Callable[[str], int], length: int, *, thinking: bool = False
) -> Iterator[Example]:
    """One question each, about the note in the first tenth of a text of about `length` tokens."""
    random = np.random.default_rng([seed, 14, length])
    for _ in range(number):
        yield _example(random, count_tokens, length, invented.HELD_OUT, number=1, held_out=True, thinking=thinking)


def is_held_out(place: str) -> bool:
    """Whether a place is kept for the test: one in eight is."""
    return zlib.crc32(place.encode()) % 8 == 0


def _example(
    random: np.random.Generator,
    count_tokens: Callable[[str], int],
    length: int,
    endings: Sequence[str],
    *,
    number: int,
    held_out: bool,
    thinking: bool,
) -> Example:
    places = [f"{adjective} {noun}" for adjective in _ADJECTIVES for noun in _NOUNS]
    places = [places[index] for index in random.permutation(len(places))]
    asked = [place for place in places if is_held_out(place) == held_out][:number]
    # Notes without a question: the model must find the answer, not only the form of an answer.
    others = [place for place in places if not is_held_out(place)][number : number + 2 + length // 128]
    notes: list[tuple[str, str, str]] = []
    for place in asked + others:
        kind = int(random.integers(3))
        value = (
            str(int(random.integers(1000, 10000))),
            invented.name(random, endings),
            invented.choice(random, _COLOURS),
        )[kind]
        notes.append((_NOTES[kind][0].format(place=place, value=value), _NOTES[kind][1].format(place=place), value))
    sentences = _sentences(random, notes, len(asked), count_tokens, length, early=held_out)
    messages: list[Json] = []
    for index in random.permutation(len(asked)):
        _, question, value = notes[index]
        content = question if messages else _OPENING + " ".join(sentences) + "\n" + question
        reply = {"role": "assistant", "content": value}
        if thinking:
            reply["reasoning_content"] = notes[index][0]
        messages += [{"role": "user", "content": content}, reply]
    return Example("retrieval", tuple(messages), thinking=thinking)


def _sentences(
    random: np.random.Generator,
    notes: list[tuple[str, str, str]],
    num_asked: int,
    count_tokens: Callable[[str], int],
    length: int,
    *,
    early: bool,
) -> list[str]:
    """Notes among filler, about `length` tokens in all; with `early`, notes with a question are in the first tenth."""
    left = length - sum(count_tokens(note) + 16 * (index < num_asked) for index, (note, _, _) in enumerate(notes))
    sentences: list[str] = []
    while left > 0:
        parts = (_SUBJECTS, _VERBS, _OBJECTS, _ENDINGS)
        sentences.append(" ".join(invented.choice(random, part) for part in parts) + ".")
        left -= count_tokens(sentences[-1])
    for note, _, _ in notes[num_asked:]:
        sentences.insert(int(random.integers(len(sentences) + 1)), note)
    for note, _, _ in notes[:num_asked]:
        last = max(1, len(sentences) // 10) if early else len(sentences)
        sentences.insert(int(random.integers(last + 1)), note)
    return sentences
