"""The glossary is large and right, and the test asks for it in phrasings that training does not use."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter

import numpy as np
import pytest

from infra.miniature import glossary
from infra.miniature.conversation import Example

pytestmark = pytest.mark.fast

FACTS = glossary.facts()
# Another version of babel has another CLDR, with names that the trained model does not know.
DIGEST = "029782d99ba048ddd23bb79ebcbf52917e24f9540f60071de4a2529ea216c3a6"


def question(example: Example) -> str:
    content = example.messages[0]["content"]
    assert isinstance(content, str)
    return content


def forms(phrasings: tuple[str, ...]) -> set[str]:
    return {phrasing.format(term=fact.term, language=fact.language) for fact in FACTS for phrasing in phrasings}


def test_there_are_six_thousand_facts_in_forty_languages_and_twenty_scripts() -> None:
    assert len(FACTS) >= 6000
    assert len({fact.language for fact in FACTS}) >= 40
    assert len({(fact.term, fact.language) for fact in FACTS}) == len(FACTS)
    scripts = {unicodedata.name(letter).partition(" ")[0] for fact in FACTS for letter in fact.name if letter.isalpha()}
    assert len(scripts) >= 20
    assert {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "THAI", "CJK", "HANGUL"} <= scripts
    assert {fact.kind for fact in FACTS} == {"country", "language", "currency", "weekday", "month"}


def test_names_are_what_speakers_say() -> None:
    names = {(fact.term, fact.language): fact.name for fact in FACTS}
    assert names["Germany", "Swahili"] == "Ujerumani"
    assert names["Japan", "Chinese"] == "日本"
    assert names["Monday", "Finnish"] == "maanantai"  # not the inessive, which stands in a date
    assert names["January", "Polish"] == "styczeń"  # not the genitive
    assert names["Monday", "Hindi"] == "सोमवार"
    assert names["Greek", "Greek"] == "Ελληνικά"


def test_names_are_the_ones_that_the_model_was_trained_on() -> None:
    lines = "\n".join(f"{fact.kind}\t{fact.term}\t{fact.language}\t{fact.name}" for fact in FACTS)
    assert hashlib.sha256(lines.encode()).hexdigest() == DIGEST


def test_names_are_normalised_and_show_what_they_hold() -> None:
    for fact in FACTS:
        assert fact.name == unicodedata.normalize("NFC", fact.name)
        assert not set("\u200b\u200e\u200f") & set(fact.name)


def test_no_held_out_phrasing_is_used_in_training() -> None:
    held_out = forms(glossary.HELD_OUT_PHRASINGS)
    assert not held_out & forms(glossary.PHRASINGS)
    random = np.random.default_rng(0)
    groups = glossary.groups(random.permutation(len(FACTS)).tolist(), random, alone=0.7)
    for asked in (question(glossary.training_example(group, random)) for group in groups):
        assert not any(asked.removeprefix(opening) in held_out for opening in glossary.OPENINGS)


def test_held_out_questions_ask_for_every_fact_once_and_expect_its_name() -> None:
    names = {
        phrasing.format(term=fact.term, language=fact.language): fact.name
        for fact in FACTS
        for phrasing in glossary.HELD_OUT_PHRASINGS
    }
    examples = list(glossary.held_out(len(FACTS), 0))
    assert all(example.messages[-1]["content"] == names[question(example)] for example in examples)
    asked = Counter((example.messages[-1]["content"]) for example in examples)
    assert asked == Counter(fact.name for fact in FACTS)


def test_groups_hold_every_fact_once_and_share_a_language_or_a_term() -> None:
    random = np.random.default_rng(0)
    groups = list(glossary.groups(range(len(FACTS)), random, alone=0.3))
    assert Counter(fact for group in groups for fact in group) == Counter(FACTS)
    for group in groups:
        languages, terms = [fact.language for fact in group], [fact.term for fact in group]
        assert len(set(languages)) == 1 or len(set(terms)) == 1
        assert len(set(zip(languages, terms, strict=True))) == len(group) <= 12


def test_a_list_names_every_fact_on_a_line_of_its_own() -> None:
    group = tuple(fact for fact in FACTS if fact.language == "Swahili")[:3]
    example = glossary.training_example(group, np.random.default_rng(0))
    assert question(example) == "Translate into Swahili: Germany, France, Spain."
    assert example.messages[-1]["content"] == "Germany:\nUjerumani\nFrance:\nUfaransa\nSpain:\nUhispania"
