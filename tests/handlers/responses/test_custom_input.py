"""The input of a custom tool's call, from its arguments in any pieces."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.handlers.responses.custom_input import CustomInput

pytestmark = pytest.mark.fast


def read(*pieces: str) -> str:
    reader = CustomInput()
    deltas = [reader.push(piece) for piece in pieces] + [reader.close()]
    assert "".join(deltas) == reader.text
    return reader.text


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.booleans(), st.lists(st.integers(0, 999), max_size=9))
def test_the_input_is_the_string_however_it_is_cut(text: str, ascii_only: bool, cuts: list[int]) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=ascii_only)
    assert read(*pieces(arguments, cuts)) == text
    assert read(arguments) == text


def test_the_input_comes_as_soon_as_it_is_known() -> None:
    reader = CustomInput()
    assert [reader.push(piece) for piece in ('{"inp', 'ut": "a', "b\\", "n\\ud83d", "\\ude00", 'c"', "}")] == [
        "",
        "a",
        "b",
        "\n",
        "\U0001f600",
        "c",
        "",
    ]
    assert reader.close() == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", ""),
        ("{}", ""),
        ('{"input": "a", "more": "b"}', "a"),
        ('{"more": "b", "input": "a"}', "a"),
        ('{"input": {"a": 1}}', '{"input": {"a": 1}}'),
        ('{"text": "a"}', '{"text": "a"}'),
        ('{"text": "a', '{"text": "a'),
        ('{"input": "a\\', "a"),
        ('{"input": "a\\ud83d', "a\N{REPLACEMENT CHARACTER}"),
        ('{"input": "\\ud83d\\ud83d\\ude00\\ude00"}', "\N{REPLACEMENT CHARACTER}\U0001f600\N{REPLACEMENT CHARACTER}"),
        ('{"input": "\\ud83da"}', "\N{REPLACEMENT CHARACTER}a"),
        ('{"input": "\\uzzzz"}', "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_arguments_of_another_form_are_not_lost(arguments: str, text: str) -> None:
    assert read(arguments) == text
    assert read(*arguments) == text


@pytest.mark.parametrize(
    ("rest", "text"), [('bc"}', "bc"), ("b\\n", "b\n"), ('{"input": "abc"}', "abc"), ("", ""), ('"}', "")]
)
def test_a_call_that_goes_on_has_the_rest_of_its_string(rest: str, text: str) -> None:
    reader = CustomInput(goes_on=True)
    assert "".join([*map(reader.push, rest), reader.close()]) == text
