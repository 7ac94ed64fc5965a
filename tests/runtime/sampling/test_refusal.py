"""llguidance's reasons in our words."""

from __future__ import annotations

import pytest

from qwonnx.runtime.sampling.refusal import in_our_words

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("lexer error: too many expressions constructed\n<non-verbose/>", "repetitions within others"),
        ("fuel exhausted when checking relevance of lexemes (200000)", "repetitions within others"),
        ("lexer error: too many states: 50000 >= 50000", "repetitions within others"),
        ("Parser Error: Current row has 3999 items; max is 2000; consider\nmaking", "fewer optional properties"),
        ("NoExtensionBias\n<non-verbose/>", "references that lead only to themselves"),
        ("schema too large", "smaller form"),
        ("Unknown format: banana", "Unknown format: banana"),
        ("at 1(8):\n   unclosed   group", "at 1(8): unclosed group"),
    ],
)
def test_a_limit_is_said_with_its_remedy_and_another_reason_is_kept(reason: str, words: str) -> None:
    assert words in in_our_words(reason)


def test_a_reason_is_short() -> None:
    assert len(in_our_words("[" * 1_000_000)) == 300
