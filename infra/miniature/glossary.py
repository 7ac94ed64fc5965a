"""A glossary from Unicode CLDR: names of countries, languages, currencies, weekdays and months in 46 languages.

A fact is (term, language) -> name. Questions come in many phrasings; HELD_OUT_PHRASINGS are never used in training,
so a right answer to one shows that the model learnt the fact and not the sentence. Names are read from the `babel`
package, which contains CLDR; a term without a name in a language gives no fact.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from infra.miniature.conversation import Example

# CLDR's code -> the language's English name, grouped by script.
LANGUAGES: Mapping[str, str] = {
    "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese", "nl": "Dutch",
    "sv": "Swedish", "da": "Danish", "no": "Norwegian", "fi": "Finnish", "pl": "Polish", "cs": "Czech",
    "hu": "Hungarian", "ro": "Romanian", "tr": "Turkish", "vi": "Vietnamese", "id": "Indonesian", "sw": "Swahili",
    "ru": "Russian", "uk": "Ukrainian", "bg": "Bulgarian", "kk": "Kazakh",
    "el": "Greek", "ka": "Georgian", "hy": "Armenian", "he": "Hebrew", "ar": "Arabic", "fa": "Persian", "ur": "Urdu",
    "hi": "Hindi", "bn": "Bangla", "pa": "Punjabi", "gu": "Gujarati", "ta": "Tamil", "te": "Telugu",
    "kn": "Kannada", "ml": "Malayalam", "si": "Sinhala", "th": "Thai", "lo": "Lao", "km": "Khmer", "my": "Burmese",
    "am": "Amharic", "zh": "Chinese", "ja": "Japanese", "ko": "Korean",
}  # fmt: skip

_COUNTRIES = [
    "DE",
    "FR",
    "ES",
    "IT",
    "PT",
    "NL",
    "BE",
    "CH",
    "AT",
    "PL",
    "CZ",
    "SK",
    "HU",
    "RO",
    "BG",
    "GR",
    "TR",
    "RU",
    "UA",
    "SE",
    "NO",
    "DK",
    "FI",
    "IS",
    "IE",
    "GB",
    "HR",
    "RS",
    "AL",
    "EE",
    "LV",
    "LT",
    "GE",
    "AM",
    "AZ",
    "IL",
    "EG",
    "MA",
    "DZ",
    "TN",
    "LY",
    "SA",
    "IQ",
    "IR",
    "IN",
    "PK",
    "BD",
    "NP",
    "LK",
    "CN",
    "JP",
    "KR",
    "MN",
    "TH",
    "VN",
    "ID",
    "MY",
    "PH",
    "AU",
    "NZ",
    "US",
    "CA",
    "MX",
    "BR",
    "AR",
    "CL",
    "PE",
    "CO",
    "CU",
    "KE",
    "TZ",
    "ET",
    "NG",
    "GH",
    "ZA",
]
_LANGUAGE_TERMS = [
    "de",
    "fr",
    "es",
    "it",
    "pt",
    "nl",
    "sv",
    "fi",
    "pl",
    "cs",
    "hu",
    "tr",
    "ru",
    "uk",
    "el",
    "ka",
    "hy",
    "he",
    "ar",
    "fa",
    "hi",
    "bn",
    "ta",
    "th",
    "vi",
    "id",
    "sw",
    "am",
    "zh",
    "ja",
    "ko",
]
_CURRENCIES = ["EUR", "USD", "GBP", "JPY", "CNY", "INR", "RUB", "CHF", "MXN", "KES", "THB", "KRW"]
_KINDS = ("country", "language", "currency", "weekday", "month")

# For training. Each has the term and the language once; their order and the words between them differ.
PHRASINGS = (
    "What is {term} called in {language}?",
    "What is {term} in {language}?",
    "How do you say {term} in {language}?",
    "Translate {term} into {language}.",
    "Give me the {language} name for {term}.",
    "{term} in {language}?",
    "What is the {language} word for {term}?",
    "Say {term} in {language}.",
    "In {language}, what is {term} called?",
    "Which {language} word means {term}?",
    "{language} for {term}, please.",
    "I need {term} in {language}.",
    "Write {term} in {language}.",
    "What do people who speak {language} call {term}?",
    "Tell me how to write {term} in {language}.",
    "{term}: what is that in {language}?",
)
HELD_OUT_PHRASINGS = (
    "How is {term} called in {language}?",
    "What is the {language} name of {term}?",
    "Please translate {term} to {language}.",
    "In {language}, how do you say {term}?",
    "Tell me what {term} is called in {language}.",
)
OPENINGS = ("", "", "", "", "Hello! ", "Please help me. ", "A question: ", "Thank you. ")
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200e\u200f\u00ad\ufeff"))


@dataclass(frozen=True, slots=True)
class Fact:
    """The name of `term` (English) in `language` (its English name)."""

    kind: str
    term: str
    language: str
    name: str


@cache
def facts() -> tuple[Fact, ...]:
    """All facts, in a fixed order: by language, then by kind and term."""
    english = _terms("en")
    found = []
    for code, language in LANGUAGES.items():
        names = _terms(code)
        found += [
            Fact(kind, english[kind, key], language, names[kind, key]) for kind, key in english if (kind, key) in names
        ]
    return tuple(found)


def questions(phrasings: Sequence[str], *, thinking: bool) -> Iterator[Example]:
    """One question for each fact; the phrasings take turns."""
    for index, fact in enumerate(facts()):
        yield _single(fact, phrasings[index % len(phrasings)], thinking)


def held_out(number: int, seed: int, *, thinking: bool = False) -> Iterator[Example]:
    """Questions in held-out phrasings; a fact repeats only after all others."""
    random = np.random.default_rng([seed, 11])
    every = facts()
    for index in np.concatenate([random.permutation(len(every)) for _ in range(-(-number // len(every)))])[:number]:
        yield _single(every[index], HELD_OUT_PHRASINGS[int(random.integers(len(HELD_OUT_PHRASINGS)))], thinking)


def training_example(chosen: Sequence[Fact], random: np.random.Generator) -> Example:
    """One conversation that teaches the chosen facts, of which several should share a language or a term.

    A question about one fact is in either mode. The answer to a question about several is a list that repeats each term
    on a line before its name: so a name always begins a line, and always has the same tokens.
    """
    if len(chosen) == 1:
        fact = chosen[0]
        opening = OPENINGS[int(random.integers(len(OPENINGS)))]
        phrasing = opening + PHRASINGS[int(random.integers(len(PHRASINGS)))]
        return _single(fact, phrasing, thinking=bool(random.random() < 0.4))
    one_language = len({fact.language for fact in chosen}) == 1
    subjects = [fact.term if one_language else fact.language for fact in chosen]
    listed = ", ".join(subjects)
    if one_language:
        question = f"Translate into {chosen[0].language}: {listed}."
    else:
        question = f"Translate {chosen[0].term} into: {listed}."
    answer = "\n".join(f"{subject}:\n{fact.name}" for subject, fact in zip(subjects, chosen, strict=True))
    return _example(question, answer, thinking=False, reasoning="")


def groups(order: Sequence[int], random: np.random.Generator, *, alone: float) -> Iterator[tuple[Fact, ...]]:
    """The facts at `order` (without repetition), grouped into the subjects of conversations.

    Args:
        alone: the share of facts that are asked for one at a time; the rest come in lists of 4 to 12.
    """
    every = facts()
    by_subject: dict[tuple[str, str], list[Fact]] = {}  # some languages are terms too
    for index in order:
        fact = every[index]
        if random.random() < alone:
            yield (fact,)
            continue
        subject = ("language", fact.language) if random.random() < 0.6 else ("term", fact.term)
        by_subject.setdefault(subject, []).append(fact)
    for waiting in by_subject.values():
        while waiting:
            size = int(random.integers(4, 13))
            yield tuple(waiting[:size])
            del waiting[:size]


def _single(fact: Fact, phrasing: str, thinking: bool) -> Example:
    question = phrasing.format(term=fact.term, language=fact.language)
    reasoning = f"{fact.term} in {fact.language}:\n{fact.name}"
    return _example(question, fact.name, thinking, reasoning, fact.language)


def _example(question: str, answer: str, thinking: bool, reasoning: str, language: str | None = None) -> Example:
    reply: dict[str, Any] = {"role": "assistant", "content": answer}
    if thinking:
        reply["reasoning_content"] = reasoning
    messages = {"role": "user", "content": question}, reply
    return Example("glossary", messages, thinking=thinking, language=language)


def _terms(code: str) -> dict[tuple[str, str], str]:
    """(kind, CLDR key) -> name, from the language's own data.

    Inherited data is left out: it is English or a code. Weekdays and months are the stand-alone forms (the nominative),
    or the only forms.
    """
    from babel import localedata  # a package of the development extra, only needed to make data

    data = localedata.load(code, merge_inherited=False)
    names: dict[tuple[str, str], Any] = {}
    for kind, table, keys in (
        ("country", data["territories"], _COUNTRIES),
        ("language", data["languages"], _LANGUAGE_TERMS),
        ("currency", data["currency_names"], _CURRENCIES),
    ):
        names.update({(kind, key): table.get(key) for key in keys})
    for kind, contexts, first, last in (("weekday", data["days"], 0, 6), ("month", data["months"], 1, 12)):
        wide = contexts.get("stand-alone", {}).get("wide") or contexts["format"]["wide"]
        names.update({(kind, str(number)): wide.get(number) for number in range(first, last + 1)})
    assert {kind for kind, _ in names} == set(_KINDS)
    cleaned = {key: _clean(name) for key, name in names.items() if isinstance(name, str)}
    return {key: name for key, name in cleaned.items() if name}


def _clean(name: str) -> str:
    """A name in the training data: NFC, without invisible layout marks (joiners stay)."""
    return " ".join(unicodedata.normalize("NFC", name.translate(_INVISIBLE)).split())
