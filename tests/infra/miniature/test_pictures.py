"""Pictures match their answers, and training has no pictures of the test."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from infra.miniature import pictures
from infra.miniature.pictures import CELL, COLOURS, SIDE, draw, scene

pytestmark = pytest.mark.fast


def test_every_cell_shows_its_groups_colour_and_the_others_the_background() -> None:
    random = np.random.default_rng(0)
    for _ in range(40):
        groups = scene(random, held_out=False)
        picture = draw(groups, random).astype(int)
        colours = {cell: COLOURS[group.colour] for group in groups for cell in group.cells}
        for row in range(SIDE):
            for column in range(SIDE):
                cell = picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
                expected = colours.get((row, column), cell[0, 0])
                assert np.abs(cell[15:17, 15:17].mean((0, 1)) - expected).max() < 25


def test_a_group_is_where_its_name_says_and_nowhere_narrower() -> None:
    random = np.random.default_rng(1)
    places = set()
    for _ in range(300):
        for group in scene(random, held_out=False):
            assert pictures.place_of(list(group.cells)) == group.place
            places.add(group.place)
    assert len(places) == 8


def test_groups_do_not_overlap_and_are_told_apart() -> None:
    random = np.random.default_rng(2)
    for _ in range(200):
        groups = scene(random, held_out=True)
        cells = [cell for group in groups for cell in group.cells]
        assert len(set(cells)) == len(cells)
        assert len({(group.colour, group.shape) for group in groups}) == len(groups)
        assert [group.cells[0] for group in groups] == sorted(group.cells[0] for group in groups)


def test_held_out_pictures_are_not_trained_on() -> None:
    random = np.random.default_rng(3)
    assert all(pictures.is_held_out(scene(random, held_out=True)) for _ in range(100))
    assert not any(pictures.is_held_out(scene(random, held_out=False)) for _ in range(300))


@pytest.mark.parametrize("thinking", [False, True])
def test_a_description_is_number_colour_shape_and_place(thinking: bool) -> None:
    answers = [example.messages[-1]["content"] for example in pictures.held_out(60, 0, thinking=thinking)]
    described = [answer for answer in answers if ", " in answer]
    assert len(described) > 20
    for answer in described:
        for part in answer.split("; "):
            things, _, place = part.partition(", ")
            number, colour, shape = things.split()
            assert number in pictures.NUMBERS
            assert colour in COLOURS
            assert shape.startswith(pictures.SHAPES)
            assert (number == "one") == (shape in pictures.SHAPES)
            assert place


def test_a_png_holds_the_picture() -> None:
    picture = draw(scene(np.random.default_rng(4), held_out=True), np.random.default_rng(4))
    content = pictures.png(picture)
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    start = content.index(b"IDAT") + 4
    size = int.from_bytes(content[start - 8 : start - 4], "big")
    rows = np.frombuffer(zlib.decompress(content[start : start + size]), np.uint8).reshape(picture.shape[0], -1)
    assert not rows[:, 0].any()
    np.testing.assert_array_equal(rows[:, 1:].reshape(picture.shape), picture)


def test_a_crowd_has_a_colour_for_each_group_and_names_the_places_that_have_one() -> None:
    random = np.random.default_rng(5)
    sizes = set()
    for _ in range(200):
        groups = pictures.crowd(random)
        cells = [cell for group in groups for cell in group.cells]
        assert len(set(cells)) == len(cells) <= SIDE**2
        assert len({group.colour for group in groups}) == len(groups)
        assert [group.place or None for group in groups] == [pictures.place_of(list(group.cells)) for group in groups]
        sizes |= {len(group.cells) for group in groups}
    assert sizes == {1, 2, 3, 4}
