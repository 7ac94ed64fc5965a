"""Guides as masks: where they begin and end, what is refused, and protection against hostile guides."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from llguidance import LLParserLimits

from qwonnx.runtime.errors import EngineClosedError, GuideError, InvalidRequestError, QueueFullError
from qwonnx.runtime.sampling import grammar, grammar_check
from qwonnx.runtime.sampling.grammar import Constraint, GrammarCompiler
from qwonnx.runtime.sampling.guide import Guide
from tests.checkpoints.tokenizer import NUM_TOKENS, token_ids
from tests.runtime.sampling.guided import ENDS, compiler, may_follow, say, tokenizer

SEEDS = range(8)


def _begun(guide: Guide, *, ignore_eos: bool = False) -> Constraint:
    constraint = compiler().constraint(guide, ignore_eos=ignore_eos)
    constraint.begin()
    return constraint


def _take(constraint: Constraint, text: str) -> None:
    for token in tokenizer().encode(text):
        assert token in may_follow(constraint), tokenizer().decode([token])
        constraint.accept(token)


@pytest.mark.parametrize(
    ("guide", "pattern"),
    [
        (Guide.regex("[a-z]{2,4}"), r"[a-z]{2,4}"),
        (Guide.regex("(a|b)/[0-9]{3}"), r"(a|b)/[0-9]{3}"),
        (Guide.regex('"\n\\\\'), r'"\n\\'),
        (Guide.choice(["yes", "no", 'a "b"\n', "é/\\"]), re.escape("yes") + '|no|a "b"\n|é/\\\\'),
        (Guide.lark('start: "(" start ")" | NUMBER\nNUMBER: /[0-9]{1,3}/'), r"\(*[0-9]{1,3}\)*"),
    ],
    ids=["regex", "regex-slash", "regex-escapes", "choice", "lark"],
)
def test_what_is_said_matches(guide: Guide, pattern: str) -> None:
    said = [say(guide, seed) for seed in SEEDS]
    assert all(text.is_complete for text in said)
    assert all(re.fullmatch(pattern, text.text) for text in said), said
    assert len({text.text for text in said}) > 1 or "\\\\" in guide.source


def test_an_end_token_is_allowed_exactly_where_the_answer_may_end() -> None:
    constraint = _begun(Guide.regex("[0-9]{2,4}"))
    for digit, may_end in (("1", False), ("2", True), ("3", True)):
        _take(constraint, digit)
        allowed = may_follow(constraint)
        assert set(ENDS) <= allowed if may_end else set(ENDS).isdisjoint(allowed)
    assert not constraint.is_complete
    _take(constraint, "4")
    assert constraint.is_complete


def test_an_end_token_completes_an_answer() -> None:
    constraint = _begun(Guide.regex("a*"))
    _take(constraint, "a")
    constraint.accept(ENDS[1])
    assert constraint.is_complete


def test_with_ignore_eos_an_answer_ends_where_nothing_more_may_follow() -> None:
    assert {say(Guide.regex("[ab]{1,5}"), seed).text for seed in SEEDS} != set()
    said = [say(Guide.regex("[ab]{1,5}"), seed, ignore_eos=True) for seed in SEEDS]
    assert all(text.is_complete and len(text.text) == 5 for text in said)


def test_special_tokens_and_padding_are_never_text() -> None:
    allowed = may_follow(_begun(Guide.regex("(?s:.*)")))
    assert allowed & set(token_ids().values()) == set(ENDS)
    assert len(allowed) > NUM_TOKENS // 2
    assert _begun(Guide.regex("(?s:.*)")).allowed().ids.max() < NUM_TOKENS


def test_thoughts_are_free_and_cannot_end_the_answer() -> None:
    guide = Guide(Guide.regex("[0-9]").kind, "[0-9]", after_thinking=True)
    constraint = _begun(guide)
    for text in ("Hm, let me see.\n\n", "<tool_call>", "</thin"):
        assert may_follow(constraint) == set(range(NUM_TOKENS)) - set(ENDS)
        _take(constraint, text)
    _take(constraint, "</think>")
    assert not set(tokenizer().encode("abc")) & may_follow(constraint)
    _take(constraint, "7")
    assert constraint.is_complete


@pytest.mark.parametrize("breaks", ["", "\n", "\n\n"])
def test_line_breaks_after_the_thoughts_are_no_part_of_the_answer(breaks: str) -> None:
    constraint = _begun(Guide(Guide.regex("7").kind, "7", after_thinking=True))
    _take(constraint, "So.</think>" + breaks)
    if breaks == "\n\n":
        assert not set(tokenizer().encode("\n")) & may_follow(constraint)
    _take(constraint, "7")
    assert constraint.is_complete


def test_a_closing_tag_that_is_spelt_out_ends_the_thoughts_too() -> None:
    constraint = _begun(Guide(Guide.regex("7").kind, "7", after_thinking=True))
    for byte in b"</think>":
        (token,) = [t for t in range(256) if tokenizer().token_bytes(t) == bytes([byte])]
        constraint.accept(token)
    assert set(tokenizer().encode("7")) <= may_follow(constraint)
    assert len(may_follow(constraint)) < 5


def test_two_requests_with_one_guide_go_their_own_ways() -> None:
    guide = Guide.regex("a[0-9]|b[a-z]")
    first, second = _begun(guide), _begun(guide)
    _take(first, "a")
    _take(second, "b")
    _take(first, "1")
    _take(second, "c")
    assert first.is_complete
    assert second.is_complete


@pytest.mark.parametrize(
    ("guide", "reason"),
    [
        (Guide.regex("(a", "structured_outputs.regex"), "unclosed group"),
        (Guide.regex("a(?=b)", "structured_outputs.regex"), "look-around"),
        (Guide.lark('begin: "a"', "structured_outputs.grammar"), "start"),
        (Guide.lark("start: nowhere", "structured_outputs.grammar"), "nowhere"),
        (Guide.lark("", "structured_outputs.grammar"), "Empty"),
        (Guide.lark('start: <no_such_token> "x"', "structured_outputs.grammar"), "no_such_token"),
        (Guide.regex("[a&&b]", "structured_outputs.regex"), ""),
    ],
)
def test_a_guide_that_cannot_be_followed_is_refused_in_one_line(guide: Guide, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^[^\n]+$") as refusal:
        compiler().compile(guide).result()
    assert reason in str(refusal.value)
    assert refusal.value.param == guide.param


@pytest.mark.parametrize("options", [[], ["a", ""]])
def test_a_choice_needs_texts(options: list[str]) -> None:
    with pytest.raises(InvalidRequestError, match="give texts"):
        Guide.choice(options)


class TestHostileGuides:
    """These would end the process, or use a core for hours; they are checked in a separate process, as in a server."""

    @pytest.fixture
    def guarded(self) -> Iterator[GrammarCompiler]:
        with closing(GrammarCompiler(tokenizer(), ENDS, NUM_TOKENS)) as compiler:
            yield compiler

    def test_an_honest_one_passes(self, guarded: GrammarCompiler) -> None:
        guarded.compile(Guide.json_object()).result()

    @pytest.mark.parametrize(
        "guide",
        [
            Guide.lark("start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(9000)) + '\nr9000: "a"'),
            Guide.json_schema(
                {
                    "$defs": {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(5000)} | {"a5000": True},
                    "$ref": "#/$defs/a0",
                }
            ),
            Guide.json_schema({"allOf": [{"type": "integer", "multipleOf": n} for n in (97, 89, 83)]}),
        ],
        ids=["chain-of-rules", "chain-of-references", "multiples"],
    )
    def test_one_that_overflows_or_never_ends_is_refused(self, guarded: GrammarCompiler, guide: Guide) -> None:
        with pytest.raises(InvalidRequestError, match="to compile"):
            guarded.compile(guide).result()

    @pytest.mark.parametrize(
        "guide",
        [
            Guide.regex("(a{1000}){1000}"),
            Guide.json_schema({"$ref": "#"}),
            Guide.json_schema({"type": "object", "properties": {f"p{n}": True for n in range(500)}}),
        ],
        ids=["powers", "reference-to-itself", "optional-properties"],
    )
    def test_one_that_would_fail_after_its_first_tokens_is_refused(
        self, guarded: GrammarCompiler, guide: Guide
    ) -> None:
        began = time.monotonic()
        with pytest.raises(InvalidRequestError, match="cannot be followed") as refusal:
            guarded.compile(guide).result()
        assert refusal.value.code == "invalid_guide"
        assert time.monotonic() - began < 5

    def test_only_so_many_may_wait_and_one_asked_for_twice_is_compiled_once(
        self, guarded: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(grammar, "_MAX_WAITING", 2)
        first, second = (guarded.compile(Guide.regex(f"a{{{count}}}")) for count in (1, 2))
        again = guarded.compile(Guide.regex("a{1}"))
        with pytest.raises(QueueFullError, match="try again"):
            guarded.compile(Guide.regex("a{3}"))
        second.result()
        assert again.result() is first.result()
        guarded.compile(Guide.regex("a{3}")).result()

    def test_what_one_owner_compiled_another_one_does_not_find(self, guarded: GrammarCompiler) -> None:
        guide = Guide.regex("ab?")
        first, second = guarded.compile(guide, "a").result(), guarded.compile(guide, "b").result()
        assert first is not second
        assert guarded.compile(guide, "a").result() is first

    def test_one_that_nobody_waits_for_is_given_up_and_may_be_asked_for_again(self, guarded: GrammarCompiler) -> None:
        endless = Guide.json_schema({"allOf": [{"type": "integer", "multipleOf": n} for n in (97, 89, 83)]})
        guarded.compile(Guide.regex("a")).result()  # the process runs
        first, second = guarded.compile(endless), guarded.compile(endless)
        waiting = [guarded.compile(dataclasses.replace(endless, param=f"guide{n}")) for n in range(8)]
        began = time.monotonic()
        assert first.cancel()
        time.sleep(0.1)
        assert not second.done()
        for future in (second, *waiting):
            assert future.cancel()
        guarded.compile(Guide.regex("b")).result()
        assert time.monotonic() - began < 3  # each of the ten takes a second
        with pytest.raises(InvalidRequestError, match="to compile"):
            guarded.compile(endless).result()

    def test_the_process_is_kept_and_one_that_died_is_replaced(self, guarded: GrammarCompiler) -> None:
        guarded.compile(Guide.regex("a")).result()
        (first,) = guarded._checker._idle
        guarded.compile(Guide.regex("b")).result()
        assert guarded._checker._idle == [first]
        first.kill()
        first.wait()
        guarded.compile(Guide.regex("c")).result()
        assert guarded._checker._idle != [first]
        (second,) = guarded._checker._idle
        guarded.rest()  # before a snapshot
        assert second.poll() is not None
        assert guarded._checker._idle == []
        guarded.compile(Guide.regex("d")).result()

    def test_a_check_measures_what_a_guide_holds(self, guarded: GrammarCompiler) -> None:
        guarded.compile(Guide.regex("a{3}")).result()
        small = guarded._kept.num_bytes
        guarded.compile(Guide.json_schema({"type": "integer", "multipleOf": 4999})).result()
        large = guarded._kept.num_bytes - small
        assert 1_000 < small < 300_000
        assert 1_000_000 < large < 30_000_000

    def test_closing_ends_a_check_that_runs(self, guarded: GrammarCompiler) -> None:
        endless = Guide.json_schema({"allOf": [{"type": "integer", "multipleOf": n} for n in (97, 89, 83)]})
        future = guarded.compile(endless)
        time.sleep(0.3)
        began = time.monotonic()
        guarded.close()
        assert time.monotonic() - began < 0.6
        with pytest.raises(EngineClosedError):
            future.result()

    def test_a_closed_one_takes_no_more(self, guarded: GrammarCompiler) -> None:
        guarded.close()
        with pytest.raises(EngineClosedError):
            guarded.constraint(Guide.regex("a"), ignore_eos=False)


def test_a_grammar_that_becomes_too_complex_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_check, "limits", lambda: LLParserLimits(max_lexer_states=180, verbose_errors=False))
    trusting = GrammarCompiler(tokenizer(), ENDS, NUM_TOKENS, trusted=True)
    constraint = trusting.constraint(Guide.regex("[0-9]{120}(.*a){3}.{20}"), ignore_eos=False)
    constraint.begin()

    def go_on() -> None:
        for token in tokenizer().encode("7" * 120 + "a cat and another cat sat at a table and ate a pear"):
            constraint.allowed()
            constraint.accept(token)

    with pytest.raises(GuideError, match="cannot continue"):
        go_on()
    trusting.close()


def test_masks_are_right_when_many_threads_compute_them() -> None:
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda seed: say(Guide.json_object(), seed, 60), range(24)))
    assert together == [say(Guide.json_object(), seed, 60) for seed in range(24)]


def test_closing_ends_the_threads_and_nothing_starts_before_a_guide_comes() -> None:
    def threads() -> list[str]:
        return [
            thread.name for thread in threading.enumerate() if thread.name.startswith(("qwonnx-mask", "qwonnx-compile"))
        ]

    before = len(threads())
    own = GrammarCompiler(tokenizer(), ENDS, NUM_TOKENS, trusted=True)
    assert len(threads()) == before
    constraint = own.constraint(Guide.regex("a"), ignore_eos=False)
    assert len(threads()) == before + 1
    constraint.begin()
    assert constraint.allowed().ids.tolist() == sorted(tokenizer().encode("a"))
    assert len(threads()) == before + 2
    own.close()
    assert len(threads()) == before
