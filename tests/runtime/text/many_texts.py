"""Texts to encode: names in the scripts of CLDR, characters by name, code and documents, random Unicode, hard cases."""

from __future__ import annotations

import random
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from babel import Locale, localedata

ROOT = Path(__file__).resolve().parents[3]
_SUFFIXES = (".py", ".md", ".cpp", ".h", ".json", ".jinja", ".svg", ".toml", ".txt")

HARD_CASES = (
    "",
    " ",
    "\n",
    "\r\n\r\n \t\n",
    " " * 300,
    " " * 129 + "x" + "\t" * 70 + "y  \n\n\n  z",
    "?",
    "??? ?\x00?",
    "\ufeffbom",
    "0123456789 1,234.5e-6 ٣٤٥ 五百 Ⅷ ½ ²",
    "don't DON'T we'LL I'm 'tis 'S",
    "e\u0301 \u1100\u1161\u11a8 각 ﬁ Å Å a\u0323\u0307 a\u0307\u0323 \u0301alone",
    "क्षत्रिय ক্ষ ක්‍ෂ ကျွန်ုပ် ภาษาไทย សួស្តី",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ☎️ ☎︎",
    "مرحبا بكم שָׁלוֹם سپتمبر ‫rtl‬ \u200b\u200d\u2060",
    "<|im_start|>user\n<think>x</think><|im_end|>\n<tool_call>{}</tool_call> <|im_en",
    "\ud800 half of a pair \udfff",
    "\U0010ffff\ue000\ufffe\u0378\U000e0001",
    "a" * 5000,
    "ab" * 400 + "ж" * 400 + "漢" * 400,
    "".join(chr(0x300 + i % 0x6F) for i in range(700)),
    "x" + "\u0301" * 700 + "y",
    "=-" * 600 + "\n" * 200,
    "def f(x):\n\treturn  x**2 # \u00e4\n\n\n\n\n",
)


def parts(num_bytes: int, seed: int = 0) -> Iterator[str]:
    """Texts of about this many bytes of UTF-8 in all, a fifth of it random Unicode. A seed gives always the same."""
    yield from HARD_CASES
    rng = random.Random(seed)
    written = {"unicode": 0, "written": 0}
    sources = [*names_of_locales(), *_documents()]
    rng.shuffle(sources)
    for source in [*sources, *_names_of_characters()]:
        if written["written"] > num_bytes * 4 // 5:
            break
        yield source
        written["written"] += len(source.encode())
    while written["unicode"] < num_bytes // 5:
        text = random_unicode(rng, rng.randrange(1, 4000))
        yield text
        written["unicode"] += len(text.encode())


@cache
def names_of_locales() -> tuple[str, ...]:
    """Languages, countries and days as each locale of CLDR calls them; one text a locale."""
    made = []
    for identifier in sorted(localedata.locale_identifiers()):
        locale = Locale.parse(identifier)
        names = [*locale.languages.values(), *locale.territories.values(), *locale.days["format"]["wide"].values()]
        made.append(", ".join(names) + ".\n" + "\n".join(names[::7]))
    return tuple(dict.fromkeys(made))


def scripts(texts: Iterable[str]) -> set[str]:
    """First words of the names of the letters: LATIN, CYRILLIC, DEVANAGARI, ..."""
    letters = {character for text in texts for character in text if character.isalpha()}
    return {unicodedata.name(letter, "?").split()[0] for letter in letters}


def random_unicode(rng: random.Random, length: int) -> str:
    """Characters of all planes, of a few blocks, or of few kinds: marks, spaces and letters."""
    kind = rng.randrange(4)
    if kind == 0:
        return "".join(_character(rng.randrange(sys.maxunicode + 1)) for _ in range(length))
    if kind == 1:
        blocks = [rng.randrange(0x30000 >> 7) << 7 for _ in range(3)]
        return "".join(_character(rng.choice(blocks) + rng.randrange(128)) for _ in range(length))
    if kind == 2:
        some = [*"aeoAO \n\t'", *"\u0301\u0308\u0323\u0338\u200d\u3099\u1161\u11a8\u1100\uac00カか"]
        return "".join(rng.choices(some, k=length))
    return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x250), 0x20))) for _ in range(length))


def _character(code: int) -> str:
    return "\n" if 0xD800 <= code < 0xE000 else chr(code)


@cache
def _documents() -> tuple[str, ...]:
    folders = [ROOT / name for name in ("runtime", "export", "handlers", "tests", "docs")]
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in _SUFFIXES]
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in paths if path.stat().st_size < 1 << 18)
    return tuple(text for text in texts if text)


@cache
def _names_of_characters() -> tuple[str, ...]:
    lines = [
        f"{chr(code)} {unicodedata.name(chr(code), '')}" for code in range(0x20, 0x20000) if not 0xD800 <= code < 0xE000
    ]
    return tuple("\n".join(lines[at : at + 500]) for at in range(0, len(lines), 500))
