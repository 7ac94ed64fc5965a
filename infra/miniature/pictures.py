"""Pictures of a few coloured shapes, and questions about them that have one right answer.

A picture is a grid of four by four cells of 32 pixels, with shapes in some cells. A *group* is one to four equal
shapes; a picture has one or two different groups. The place of a group is the quadrant that contains all of it ("top
left"), or else the half. Groups are named in reading order of their first cells. A hash of the groups' colours, shapes
and counts selects the held-out pictures.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.miniature import invented
from infra.miniature.conversation import Example, Json

CELL = 32  # pixels; one visual token
SIDE = 4  # cells
COLOURS = {
    "red": (220, 30, 30), "green": (30, 170, 50), "blue": (40, 70, 230), "yellow": (240, 210, 20),
    "purple": (150, 40, 190), "orange": (250, 130, 10), "black": (15, 15, 15), "white": (250, 250, 250),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
NUMBERS = ("one", "two", "three", "four")

_PLACES = {
    "top left": ((0, 1), (0, 1)), "top right": ((0, 1), (2, 3)),
    "bottom left": ((2, 3), (0, 1)), "bottom right": ((2, 3), (2, 3)),
    "left": ((0, 1, 2, 3), (0, 1)), "right": ((0, 1, 2, 3), (2, 3)),
    "top": ((0, 1), (0, 1, 2, 3)), "bottom": ((2, 3), (0, 1, 2, 3)),
}  # fmt: skip
_QUESTIONS = ("What is in the picture?", "Describe the picture.", "What do you see?", "What is shown here?")
_HELD_OUT_QUESTIONS = ("What does the picture show?", "Tell me what is in the picture.")
_BACKGROUNDS = ((200, 200, 200), (225, 220, 205), (185, 200, 210))


@dataclass(frozen=True, slots=True)
class Group:
    """`cells` are (row, column), in reading order; `place` is empty if the cells' place has no name."""

    colour: str
    shape: str
    place: str
    cells: tuple[tuple[int, int], ...]

    @property
    def things(self) -> str:
        """`two red circles`."""
        plural = "" if len(self.cells) == 1 else "es" if self.shape == "cross" else "s"
        return f"{NUMBERS[len(self.cells) - 1]} {self.colour} {self.shape}{plural}"


@dataclass(frozen=True, slots=True)
class _Manner:
    """How examples are drawn.

    Attributes:
        pairs: share of pictures with two groups; draws with two equal groups are repeated.
        crowds: share of pictures with more groups, which are not described.
        narrow: share of questions that are about one group, if such a question has one right answer.
        kinds: of these, drawn uniformly: 0 how many, 1 where, 2 which colour, 3 which shapes.
        questions: the most about a picture, one turn each.
        thinking: share of examples with thought.
    """

    pairs: float = 0.6
    crowds: float = 0.0
    narrow: float = 0.4
    kinds: tuple[int, ...] = (0, 1, 2, 3)
    questions: int = 1
    thinking: float = 0.3


# The model learns last to find the group of a question: with one or two groups, an answer about any group is right too
# often. It finds colour or shape before place and number.
_TRAINING = _Manner(pairs=0.85, crowds=0.2, narrow=0.85, kinds=(0, 0, 0, 1, 1, 1, 2, 3), questions=8, thinking=0.1)
_PLAIN = _Manner()  # of the test, and of the vocabulary's texts


def training_example(random: np.random.Generator, *, varied: bool = True) -> Example:
    """A picture and questions about it: what is there, or how many, which colour, which shape, where.

    Args:
        varied: several questions, most of them about one group; if false, as in the vocabulary's texts.
    """
    manner = _TRAINING if varied else _PLAIN
    thinking = bool(random.random() < manner.thinking)
    return _example(random, manner, held_out=False, thinking=thinking)


def held_out(number: int, seed: int, *, thinking: bool = False) -> Iterator[Example]:
    """Descriptions of held-out pictures, in held-out phrasings, and questions about them."""
    random = np.random.default_rng([seed, 13])
    for _ in range(number):
        yield _example(random, _PLAIN, held_out=True, thinking=thinking)


def scene(random: np.random.Generator, *, held_out: bool, pairs: float = _PLAIN.pairs) -> tuple[Group, ...]:
    """One or two groups that do not overlap, in reading order."""
    while True:
        groups = [_group(random, ())]
        if random.random() < pairs:
            groups.append(_group(random, groups[0].cells))
        if len({(group.colour, group.shape) for group in groups}) != len(groups):
            continue
        groups.sort(key=lambda group: group.cells[0])
        if is_held_out(groups) == held_out:
            return tuple(groups)


def crowd(random: np.random.Generator) -> tuple[Group, ...]:
    """Three to eight groups in different colours that lie anywhere, in reading order; some have no place."""
    colours = random.permutation(len(COLOURS))[: int(random.integers(3, len(COLOURS) + 1))]
    largest = SIDE**2 // len(colours)
    cells = [divmod(int(index), SIDE) for index in random.permutation(SIDE**2)]
    groups = []
    for colour in colours:
        chosen = sorted(cells.pop() for _ in range(int(random.integers(1, min(largest, len(NUMBERS)) + 1))))
        shape = invented.choice(random, SHAPES)
        groups.append(Group(list(COLOURS)[colour], shape, place_of(chosen) or "", tuple(chosen)))
    return tuple(sorted(groups, key=lambda group: group.cells[0]))


def is_held_out(groups: list[Group] | tuple[Group, ...]) -> bool:
    """Whether a picture with these groups is kept for the test: one in eight is, for any places of the groups."""
    return zlib.crc32("; ".join(sorted(group.things for group in groups)).encode()) % 8 == 0


def draw(groups: tuple[Group, ...], random: np.random.Generator) -> np.ndarray:
    """The picture, uint8 [128, 128, 3]; sizes, offsets and the background vary a little."""
    picture = np.empty((SIDE * CELL, SIDE * CELL, 3), np.float32)
    picture[:] = _BACKGROUNDS[int(random.integers(len(_BACKGROUNDS)))]
    rows, columns = np.mgrid[:CELL, :CELL].astype(np.float32)
    for group in groups:
        for row, column in group.cells:
            radius = float(random.uniform(9, 13))
            y = rows - float(random.uniform(14, 17))
            x = columns - float(random.uniform(14, 17))
            cell = picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            cell[_inside(group.shape, x / radius, y / radius)] = COLOURS[group.colour]
    picture += 4 * random.standard_normal(picture.shape, np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)


def png(picture: np.ndarray) -> bytes:
    """The picture as a PNG file, for requests over HTTP."""
    height, width, _ = picture.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, width * 3)], 1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes()))
        + chunk(b"IEND", b"")
    )


def _group(random: np.random.Generator, taken: tuple[tuple[int, int], ...]) -> Group:
    while True:
        place = list(_PLACES)[int(random.integers(len(_PLACES)))]
        rows, columns = _PLACES[place]
        free = [(row, column) for row in rows for column in columns]
        count = int(random.integers(1, 5))
        cells = sorted(free[index] for index in random.permutation(len(free))[:count])
        # A half is the place only of cells that no quadrant contains; groups do not share cells.
        if place_of(cells) == place and not set(cells) & set(taken):
            colour = list(COLOURS)[int(random.integers(len(COLOURS)))]
            return Group(colour, SHAPES[int(random.integers(len(SHAPES)))], place, tuple(cells))


def place_of(cells: list[tuple[int, int]]) -> str | None:
    """The first quadrant, or else the first half, that contains all cells; None if there is none."""
    for place, (rows, columns) in _PLACES.items():
        if all(row in rows and column in columns for row, column in cells):
            return place
    return None


def _inside(shape: str, x: Any, y: Any) -> Any:
    """Which pixels belong to a shape of radius one around the origin."""
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.85
    if shape == "triangle":
        return (y <= 0.8) & (abs(x) * 1.7 <= y + 0.95)
    return (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 1)


def _example(random: np.random.Generator, manner: _Manner, *, held_out: bool, thinking: bool) -> Example:
    """Questions about a picture. The description is last, so that the other answers cannot be copied from it."""
    turns = int(random.integers(1, manner.questions + 1)) if manner.questions > 1 else 1
    is_crowd = bool(not thinking and manner.crowds and random.random() < manner.crowds)
    groups = crowd(random) if is_crowd else scene(random, held_out=held_out, pairs=manner.pairs)
    description = "; ".join(f"{group.things}, {group.place}" for group in groups)
    phrasings = _HELD_OUT_QUESTIONS if held_out else _QUESTIONS
    answers: dict[str, str] = {}  # by question, so that no question repeats
    for _ in range(turns):
        asked = _about(random, groups, manner) if is_crowd or random.random() < manner.narrow else None
        while is_crowd and asked is None:
            asked = _about(random, groups, manner)
        question, answer = asked or (invented.choice(random, phrasings), description)
        answers[question] = answer
    messages: list[Json] = []
    for question, answer in sorted(answers.items(), key=lambda item: item[1] == description):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        reply = {"role": "assistant", "content": answer, **({"reasoning_content": description} if thinking else {})}
        messages += [{"role": "user", "content": question if messages else content}, reply]
    return Example("pictures", tuple(messages), pictures=(draw(groups, random),), thinking=thinking)


def _about(random: np.random.Generator, groups: tuple[Group, ...], manner: _Manner) -> tuple[str, str] | None:
    """A question about one group that fits no other group; None if the drawn question is ambiguous."""
    group = groups[int(random.integers(len(groups)))]
    others = [other for other in groups if other is not group]
    kind = manner.kinds[int(random.integers(len(manner.kinds)))]
    if kind == 0:
        return f"How many {group.colour} {_plural(group.shape)} are there?", NUMBERS[len(group.cells) - 1]
    if kind == 1 and group.place:
        return f"Where are the {group.colour} {_plural(group.shape)}?", group.place
    if kind == 2 and all(other.shape != group.shape for other in others):
        return f"Which colour are the {_plural(group.shape)}?", group.colour
    if kind == 3 and all(other.colour != group.colour for other in others):
        return f"Which shapes are {group.colour}?", _plural(group.shape)
    return None


def _plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")
