from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.runtime.text.stop_strings import StopStrings, longest_beginning

pytestmark = pytest.mark.fast

LETTERS = st.text("ab\n", max_size=20)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3)


def _run(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    machine = StopStrings(stops)
    emitted = []
    for piece in pieces:
        text, stopped = machine.push(piece)
        emitted.append(text)
        if stopped:
            return emitted, True
    return [*emitted, machine.finish()], False


def _reference(stops: list[str], text: str) -> tuple[str, bool]:
    ends = [(text.index(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    if not ends:
        return text, False
    end, negative_length = min(ends)
    return text[: end + negative_length], True


@given(stops=STOPS, pieces=st.lists(LETTERS, max_size=6))
def test_text_up_to_the_first_stop_is_emitted_however_it_is_cut(stops: list[str], pieces: list[str]) -> None:
    emitted, stopped = _run(stops, pieces)
    assert ("".join(emitted), stopped) == _reference(stops, "".join(pieces))


@given(stops=STOPS, pieces=st.lists(LETTERS, max_size=6))
def test_what_is_held_back_is_no_more_than_the_beginning_of_a_stop(stops: list[str], pieces: list[str]) -> None:
    machine = StopStrings(stops)
    emitted = seen = ""
    for piece in pieces:
        text, stopped = machine.push(piece)
        emitted, seen = emitted + text, seen + piece
        if stopped:
            return
        held = seen[len(emitted) :]
        assert len(held) == longest_beginning(seen, stops)
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_stop_across_pieces_leaves_nothing_of_itself_behind() -> None:
    assert _run(["STOP"], ["one S", "TO", "P two"]) == (["one ", "", ""], True)
    assert _run(["STOP"], ["one S", "TO", " two"]) == (["one ", "", "STO two", ""], False)


def test_without_stops_text_passes_at_once() -> None:
    assert StopStrings([]).push("abc") == ("abc", False)


def test_the_longest_beginning_is_shorter_than_the_string_itself() -> None:
    assert longest_beginning("xab", ["abc", "b"]) == 2
    assert longest_beginning("abc", ["abc"]) == 0
    assert longest_beginning("anything", []) == 0


@given(stops=STOPS, before=LETTERS, after=LETTERS, data=st.data())
def test_stops_are_looked_for_after_a_text_if_one_is_given(
    stops: list[str], before: str, after: str, data: st.DataObject
) -> None:
    text = f"{before}</t>{after}"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    machine = StopStrings(stops, "</t>")
    emitted, stopped = "", False
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        if not stopped:
            piece, stopped = machine.push(text[begin:end])
            emitted += piece
    said, found = _reference(stops, after)
    assert (emitted + machine.finish(), stopped) == (f"{before}</t>{said}", found)
