"""The scheduler by itself, driven by integers; a dictionary replaces the cache's rows."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.runtime.cache.rows import CacheSnapshot, RowMove
from qwonnx.runtime.scheduling.row_budget import RowBudget
from qwonnx.runtime.scheduling.scheduler import Scheduler, violations
from qwonnx.runtime.scheduling.sequence import Sequence, StepPlan

pytestmark = pytest.mark.fast


def _sequence(name: str, num_prompt_tokens: int) -> Sequence:
    return Sequence(name, [0] * num_prompt_tokens, num_prompt_tokens)


class Rows:
    """The sequence in each row, according to the moves."""

    def __init__(self) -> None:
        self.owner: dict[int, str] = {}

    def apply(self, moves: tuple[RowMove, ...]) -> None:
        for move in moves:
            assert move.target not in self.owner, "moved onto another sequence"
            if move.source in self.owner:
                self.owner[move.target] = self.owner.pop(move.source)

    def run(self, scheduler: Scheduler, plan: StepPlan) -> None:
        for row, sequence in enumerate(plan.sequences, plan.first_row):
            if sequence.num_computed == 0:
                assert row not in self.owner
                self.owner[row] = sequence.request_id
            assert self.owner[row] == sequence.request_id
        self.apply(scheduler.commit(plan))
        if plan.wants_logits:
            for sequence in plan.sequences:
                sequence.token_ids.append(0)

    def remove(self, scheduler: Scheduler, sequence: Sequence) -> None:
        row = scheduler.row_of(sequence)
        moves = scheduler.remove(sequence)
        if row is not None:
            self.owner.pop(row, None)
        self.apply(moves)


def _run(scheduler: Scheduler, rows: Rows, steps: int) -> list[StepPlan]:
    plans = []
    for _ in range(steps):
        plan = scheduler.schedule()
        assert plan is not None
        plans.append(plan)
        rows.run(scheduler, plan)
    return plans


def test_nothing_to_do_is_no_plan() -> None:
    assert Scheduler(2, 4).schedule() is None


def test_a_prompt_is_read_in_chunks_and_only_the_last_wants_logits() -> None:
    scheduler, rows = Scheduler(2, 4), Rows()
    scheduler.add(_sequence("a", 10))
    seen = [(plan.num_tokens, plan.wants_logits) for plan in _run(scheduler, rows, 4)]
    assert seen == [(4, False), (4, False), (2, True), (1, True)]


def test_all_decoding_sequences_share_one_step() -> None:
    scheduler, rows = Scheduler(3, 4), Rows()
    for name in "abc":
        scheduler.add(_sequence(name, 2))
    plan = _run(scheduler, rows, 7)[-1]
    assert (plan.first_row, len(plan.sequences), plan.num_tokens) == (0, 3, 1)


def test_prompts_and_decoding_take_turns() -> None:
    scheduler, rows = Scheduler(3, 1), Rows()
    scheduler.add(_sequence("decodes", 1))
    scheduler.add(_sequence("reads", 100))
    kinds = [[sequence.request_id for sequence in plan.sequences] for plan in _run(scheduler, rows, 20)]
    assert kinds == [["decodes"]] + [["decodes"], ["reads"]] * 9 + [["decodes"]]


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    scheduler, rows = Scheduler(2, 4), Rows()
    scheduler.add(_sequence("long", 1000))
    scheduler.add(_sequence("short", 8))
    names = [plan.sequences[0].request_id for plan in _run(scheduler, rows, 4)]
    assert names == ["long", "short", "long", "short"]
    assert scheduler.snapshot().running == (("short", 8), ("long", 8))  # decoding sequences come first


def _read_together(*lengths: int, chunk: int = 16, decoding: bool = False) -> list[tuple[list[str], int]]:
    """Names and tokens of the steps that read these prompts, in adjacent rows."""
    scheduler, rows = Scheduler(len(lengths) + 1, chunk), Rows()
    if decoding:
        scheduler.add(_sequence("decodes", 1))
        _run(scheduler, rows, 1)
    sequences = [_sequence(name, length) for name, length in zip("abcdefgh", lengths, strict=False)]
    for sequence in sequences:
        scheduler.add(sequence)
    steps = []
    while any(sequence.is_prefilling for sequence in sequences):
        (plan,) = _run(scheduler, rows, 1)
        names = [sequence.request_id for sequence in plan.sequences]
        if plan.num_tokens > 1:  # the others decode
            steps.append((names, plan.num_tokens))
    return steps


def test_prompts_of_one_length_are_read_in_one_step_if_its_tokens_suffice() -> None:
    assert _read_together(5, 5, 5) == [(["a", "b", "c"], 5)]
    assert _read_together(5, 5, 5, decoding=True) == [(["a", "b", "c"], 5)]
    assert _read_together(8, 8, 8) == [(["a", "b"], 8), (["c"], 8)]
    assert _read_together(9, 9) == [(["a"], 9), (["b"], 9)]


def test_a_longer_prompt_joins_if_no_small_rest_is_left_over() -> None:
    assert _read_together(4, 8) == [(["a", "b"], 4), (["b"], 4)]
    assert _read_together(4, 5) == [(["a"], 4), (["b"], 5)]
    assert _read_together(8, 4) == [(["a"], 8), (["b"], 4)]


def test_a_prompt_that_was_in_a_step_that_failed_is_read_alone() -> None:
    scheduler, rows = Scheduler(3, 16), Rows()
    first, second, third = (_sequence(name, 5) for name in "abc")
    second.reads_alone = True
    for sequence in (first, second, third):
        scheduler.add(sequence)
    assert [len(plan.sequences) for plan in _run(scheduler, rows, 1)] == [1]


def test_who_begins_alike_does_not_join_but_waits() -> None:
    scheduler, rows = Scheduler(3, 64), Rows()
    tokens = list(range(10))
    alike = [Sequence(name, [*tokens, ord(name)], 11, boundaries=(10,)) for name in "ab"]
    for sequence in alike:
        scheduler.add(sequence)
    plans = _run(scheduler, rows, 1)
    assert [(plan.sequences, plan.num_tokens) for plan in plans] == [((alike[0],), 10)]


def test_rows_are_given_in_order_of_arrival() -> None:
    scheduler, rows = Scheduler(1, 4), Rows()
    first, second = _sequence("first", 1), _sequence("second", 1)
    scheduler.add(first)
    scheduler.add(second)
    assert _run(scheduler, rows, 1)[0].sequences == (first,)
    assert scheduler.snapshot().waiting == ("second",)
    rows.remove(scheduler, first)
    assert _run(scheduler, rows, 1)[0].sequences == (second,)


@given(
    actions=st.lists(
        st.one_of(
            st.integers(1, 9).map(lambda n: ("add", n)),
            st.just(("step", 0)),
            st.tuples(st.just("end"), st.integers(0, 9)),
        ),
        max_size=80,
    ),
    max_num_seqs=st.integers(1, 4),
    chunk=st.integers(1, 4),
)
def test_rows_stay_without_gaps_and_every_step_finds_its_sequences_in_theirs(
    actions: list[tuple[str, int]], max_num_seqs: int, chunk: int
) -> None:
    scheduler, rows = Scheduler(max_num_seqs, chunk), Rows()
    live: list[Sequence] = []
    for number, (action, value) in enumerate(actions):
        if action == "add":
            live.append(_sequence(f"r{number}", value))
            scheduler.add(live[-1])
        elif action == "end" and live:
            rows.remove(scheduler, live.pop(value % len(live)))
        else:
            plan = scheduler.schedule()
            assert (plan is None) == (not live)
            if plan is not None:
                assert plan.num_tokens <= chunk
                rows.run(scheduler, plan)
        computed = {sequence.request_id: sequence.num_computed for sequence in live}
        lengths = tuple(computed[rows.owner[row]] if row in rows.owner else None for row in range(max_num_seqs + 1))
        unread = [sequence.request_id for sequence in live if sequence.is_prefilling]
        assert violations(scheduler.snapshot(), CacheSnapshot(lengths, 1000, 0, 0, 0, 0), unread) == []


@given(
    prompts=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 40)), min_size=1, max_size=8),
    max_num_seqs=st.integers(1, 4),
    chunk=st.integers(1, 8),
    num_generated=st.integers(1, 6),
)
def test_nobody_who_has_a_row_waits_longer_than_the_rule_says(
    prompts: list[tuple[int, int]], max_num_seqs: int, chunk: int, num_generated: int
) -> None:
    """Decoding waits for one chunk at most, a prompt for a chunk of each other one and the decoding steps between."""
    scheduler, rows = Scheduler(max_num_seqs, chunk), Rows()
    waited: dict[Sequence, int] = {}
    pending = [(sum(gap for gap, _ in prompts[: i + 1]), _sequence(str(i), n)) for i, (_, n) in enumerate(prompts)]
    for step in range(2000):
        for sequence in [sequence for due, sequence in pending if due == step]:
            scheduler.add(sequence)
        plan = scheduler.schedule()
        if plan is None:
            if step >= pending[-1][0]:
                break
            continue
        running = [name for name, _ in scheduler.snapshot().running]
        for sequence in [sequence for _, sequence in pending if sequence.request_id in running]:
            if sequence in plan.sequences:
                waited[sequence] = 0
                continue
            waited[sequence] = waited.get(sequence, 0) + 1
            assert waited[sequence] <= (2 * max_num_seqs if sequence.is_prefilling else 1)
        rows.run(scheduler, plan)
        for sequence in plan.sequences:
            if sequence.num_generated == num_generated:
                rows.remove(scheduler, sequence)
    assert not scheduler.num_running + scheduler.num_waiting


def test_short_prompts_that_keep_coming_do_not_keep_a_long_one_waiting() -> None:
    scheduler, rows = Scheduler(2, 4), Rows()
    long = _sequence("long", 40)
    scheduler.add(long)
    for number in range(40):
        scheduler.add(_sequence(str(number), 2))
    for _ in range(40):
        plan = _run(scheduler, rows, 1)[0]
        for sequence in plan.sequences:
            if sequence is not long and sequence.num_generated:
                rows.remove(scheduler, sequence)
        if not long.is_prefilling:
            break
    assert not long.is_prefilling
    assert scheduler.num_waiting > 15


@given(
    prompts=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    max_num_seqs=st.integers(1, 4),
    max_tokens=st.integers(36, 120),
)
def test_bytes_are_never_exceeded_and_everyone_ends_in_spite_of_it(
    prompts: list[int], max_num_seqs: int, max_tokens: int
) -> None:
    budget = RowBudget(bytes_per_row=2, bytes_per_token=1, max_bytes=max_tokens + 2 * max_num_seqs)
    scheduler, rows = Scheduler(max_num_seqs, 4, budget=budget), Rows()
    sequences = [_sequence(str(number), length) for number, length in enumerate(prompts)]
    for sequence in sequences:
        scheduler.add(sequence)
    ended = []
    for _ in range(5000):
        while (victim := scheduler.overflowing()) is not None:
            assert victim.arrival == max(each.arrival for each in sequences if scheduler.row_of(each) is not None)
            row = scheduler.row_of(victim)
            moves = scheduler.preempt(victim)
            assert row is not None
            rows.owner.pop(row, None)
            rows.apply(moves)
        plan = scheduler.schedule()
        if plan is None:
            break
        rows.run(scheduler, plan)
        running = [each for each in sequences if scheduler.row_of(each) is not None]
        assert budget.fits(each.num_computed for each in running)
        for sequence in plan.sequences:
            if sequence.num_generated == 5:
                rows.remove(scheduler, sequence)
                ended.append(sequence)
    assert len(ended) == len(sequences)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 3))
def test_everyone_is_served_in_the_end(prompts: list[int], max_num_seqs: int) -> None:
    scheduler, rows = Scheduler(max_num_seqs, 4), Rows()
    for number, length in enumerate(prompts):
        scheduler.add(_sequence(str(number), length))
    finished: set[str] = set()
    for _ in range(sum(prompts) + 20 * len(prompts)):
        plan = scheduler.schedule()
        if plan is None:
            break
        rows.run(scheduler, plan)
        for sequence in plan.sequences:
            if sequence.num_generated == 5:
                rows.remove(scheduler, sequence)
                finished.add(sequence.request_id)
    assert len(finished) == len(prompts)


def test_violations_are_seen() -> None:
    scheduler = Scheduler(2, 4)
    scheduler.add(_sequence("a", 3))
    scheduler.schedule()
    good = CacheSnapshot((None, None, None), 10, 0, 0, 0, 0)
    assert violations(scheduler.snapshot(), good, ["a"]) == []
    wrong = CacheSnapshot((2, None, 1), 10, 0, 0, 0, 0)
    assert len(violations(scheduler.snapshot(), wrong, ["a"])) == 2
    assert violations(scheduler.snapshot(), good, []) == ["a is in row 0, on the wrong side of 0"]


def test_who_only_counts_loads_no_arrays() -> None:
    program = "import sys, qwonnx.runtime.scheduling.scheduler; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
