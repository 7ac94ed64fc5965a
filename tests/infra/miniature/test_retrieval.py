"""The note of a question is once in the text, early in a text of the test, and about a place that training lacks."""

from __future__ import annotations

import re

import numpy as np
import pytest

from infra.miniature import retrieval
from infra.miniature.mixture import Mixture

pytestmark = pytest.mark.fast

_PLACE = re.compile(r"(?:code|owner|door) of the (\w+ \w+)")


@pytest.mark.parametrize("length", [256, 1024, 4096])
def test_the_answer_is_in_the_first_tenth_and_the_text_about_as_long_as_asked_for(
    mixture: Mixture, length: int
) -> None:
    for example in retrieval.held_out(4, 0, mixture.count_tokens, length):
        text, _, question = example.messages[0]["content"].rpartition("\n")
        place = _PLACE.findall(question)[0]
        notes = [sentence for sentence in text.split(". ") if place in sentence]
        assert len(notes) == 1
        assert example.messages[1]["content"] in notes[0]
        assert text.index(place) < len(text) * 0.15 + 80
        assert abs(mixture.count_tokens(text) - length) < 32 + length * 0.04


def test_every_question_of_a_training_text_has_its_note_and_asks_for_no_place_of_the_test(mixture: Mixture) -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        example = retrieval.training_example(random, mixture.count_tokens, 400)
        text = example.messages[0]["content"]
        assert not any(retrieval.is_held_out(place) for place in _PLACE.findall(text))
        for question, answer in zip(example.messages[::2], example.messages[1::2], strict=True):
            place = _PLACE.findall(question["content"])[-1]
            assert any(place in note and answer["content"] in note for note in re.split(r"\.\s", text))


def test_one_place_in_eight_is_held_out(mixture: Mixture) -> None:
    for example in retrieval.held_out(10, 0, mixture.count_tokens, 200):
        question = example.messages[0]["content"].rpartition("\n")[2]
        assert retrieval.is_held_out(_PLACE.findall(question)[0])
