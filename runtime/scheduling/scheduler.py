"""The scheduler: a pure account of sequences, tokens and rows. It does not know tensors or text.

A step is a rectangle: chunks of equal size of one or several prompts, [B, S], or the next token of every decoding
sequence, [B, 1]. The row of a running sequence is its index in `running`. Decoding sequences come first, in rows
0..B-1; sequences whose prompt is not read yet follow. commit() and remove() return the moves that keep this order
without gaps.

Fairness:

- Prompts and decoding take turns while both want to run, so each waits for at most one step of the other.
- Prompts take turns chunk by chunk. A prompt that begins like one being read waits for the shared part.
- Requests get rows in order of arrival. If bytes run out, the newest one gives its row back and reads its tokens later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from msgspec import Struct

from qwonnx.runtime.cache.rows import CacheSnapshot, RowMove
from qwonnx.runtime.scheduling.row_budget import UNLIMITED, RowBudget
from qwonnx.runtime.scheduling.sequence import Sequence, StepPlan

# Spare tokens per row, the new one included, that must fit when a request is admitted. Without them, the next token of
# another request would take the row away again.
HEADROOM = 64


class SchedulerSnapshot(Struct, frozen=True):
    """Request ids and computed tokens in row order, and the number of decoding sequences."""

    waiting: tuple[str, ...]
    running: tuple[tuple[str, int], ...]
    num_decoding: int


class Scheduler:
    """Waiting and running sequences.

    Args:
        max_num_seqs: rows.
        max_num_batched_tokens: limit for the tokens of a step that reads prompts.
        begin: called with a sequence and its row before its first chunk. It may fill the row with a known prefix and
            set num_computed to its length.
        budget: of the rows; one sequence alone must fit.
        joins_pasts: whether prompts of which a part is read already may share a step.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        begin: Callable[[Sequence, int], None] = lambda sequence, row: None,
        budget: RowBudget = UNLIMITED,
        *,
        joins_pasts: bool = True,
    ) -> None:
        self._joins_pasts = joins_pasts
        self._budget = budget
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._begin = begin
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._arrivals = 0
        self._turn = 0
        self._prefilled_last = False

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self._waiting.append(sequence)

    def overflowing(self) -> Sequence | None:
        """The newest running sequence, if the running sequences together exceed the budget; otherwise None."""
        if self._budget.fits(sequence.num_reserved for sequence in self._running):
            return None
        return max(self._running, key=lambda sequence: sequence.arrival)

    def preempt(self, sequence: Sequence) -> tuple[RowMove, ...]:
        """Put a running sequence back at the front of the queue; returns moves like remove()."""
        moves = self.remove(sequence)
        sequence.num_computed = 0
        sequence.num_known = len(sequence.token_ids)
        self._waiting.appendleft(sequence)
        return moves

    def schedule(self) -> StepPlan | None:
        """The next step, None if there is nothing to do. The plan stays valid until commit(), preempt() or remove()."""
        while self._waiting and len(self._running) < self._max_num_seqs and self._admits(self._waiting[0]):
            sequence = self._waiting.popleft()
            # Its turn comes after those of the running ones: a series of short prompts must not keep a long one
            # waiting.
            sequence.last_turn = self._turn
            self._running.append(sequence)
        num_decoding = self._num_decoding()
        prefilling = self._running[num_decoding:]
        if not self._running:
            return None
        self._turn += 1
        if prefilling and not (num_decoding and self._prefilled_last):
            self._prefilled_last = True
            return self._read(prefilling)
        self._prefilled_last = False
        return StepPlan(0, tuple(self._running[:num_decoding]), 1, wants_logits=True)

    def commit(self, plan: StepPlan) -> tuple[RowMove, ...]:
        """Account for a step that has run. A sequence whose prompt is complete joins the decoding ones."""
        num_decoding = self._num_decoding()
        for sequence in plan.sequences:
            sequence.num_computed += plan.num_tokens
        moves: list[RowMove] = []
        for row in range(max(num_decoding, plan.first_row), plan.first_row + len(plan.sequences)):
            if not self._running[row].is_prefilling:
                self._exchange(row, num_decoding, moves)
                num_decoding += 1
        return tuple(moves)

    def row_of(self, sequence: Sequence) -> int | None:
        """The row of a running sequence, None for one that waits."""
        return self._running.index(sequence) if sequence in self._running else None

    def remove(self, sequence: Sequence) -> tuple[RowMove, ...]:
        """Remove a waiting or running sequence. The moves close the gap of its row, after that is released."""
        if sequence not in self._running:
            self._waiting.remove(sequence)
            return ()
        moves: list[RowMove] = []
        gap = self._running.index(sequence)
        num_decoding = self._num_decoding()
        if gap < num_decoding:
            gap = self._fill(gap, num_decoding - 1, moves)
        self._fill(gap, len(self._running) - 1, moves)
        self._running.pop()
        return tuple(moves)

    def snapshot(self) -> SchedulerSnapshot:
        return SchedulerSnapshot(
            waiting=tuple(sequence.request_id for sequence in self._waiting),
            running=tuple((sequence.request_id, sequence.num_computed) for sequence in self._running),
            num_decoding=self._num_decoding(),
        )

    def _read(self, prefilling: list[Sequence]) -> StepPlan:
        """A chunk of the prompt whose turn it is, with equal chunks of prompts in adjacent rows."""
        ready = [sequence for sequence in prefilling if not _awaits_another(sequence, prefilling)]
        sequence = min(ready, key=lambda candidate: candidate.last_turn)
        first = last = self._running.index(sequence)
        chunk = self._begin_chunk(sequence, first)
        reading = [sequence]
        num_decoding = len(self._running) - len(prefilling)
        for step, end in ((1, len(self._running)), (-1, num_decoding - 1)):
            for row in range((last if step > 0 else first) + step, end, step):
                other = self._running[row]
                fits = (len(reading) + 1) * chunk <= self._max_num_batched_tokens
                if not fits or other not in ready or not self._joins(other, row, reading, chunk):
                    break
                reading.append(other)
                first, last = min(first, row), max(last, row)
        for each in reading:
            each.last_turn = self._turn
        sequences = tuple(self._running[first : last + 1])
        wants_logits = any(each.num_computed + chunk == each.num_known for each in sequences)
        return StepPlan(first, sequences, chunk, wants_logits)

    def _begin_chunk(self, sequence: Sequence, row: int) -> int:
        """Restore a prompt's known prefix into its row; return the number of tokens that the next chunk may have."""
        if sequence.num_computed == 0:
            self._begin(sequence, row)
        remaining = sequence.num_known - sequence.num_computed
        ahead = (boundary - sequence.num_computed for boundary in sequence.boundaries)
        to_boundary = next((distance for distance in ahead if distance > 0), remaining)
        return min(remaining, to_boundary, self._max_num_batched_tokens)

    def _joins(self, other: Sequence, row: int, reading: list[Sequence], chunk: int) -> bool:
        """Whether another prompt is read in the same step: it has a whole chunk and does not leave a small rest."""
        if other.reads_alone or reading[0].reads_alone:
            return False
        if not self._joins_pasts and (other.num_computed or reading[0].num_computed):
            return False
        if other.num_computed == 0 and any(_has_ahead(each, other) for each in reading):
            return False  # it can restore a prefix that they are about to read
        if other.num_known - other.num_computed < chunk:
            return False  # too short, with or without a known prefix, so begin() is not called
        rest = self._begin_chunk(other, row) - chunk
        if not self._joins_pasts and other.num_computed:
            return False  # it began with a known prefix
        return rest == 0 or 2 * rest >= chunk

    def _exchange(self, row: int, target: int, moves: list[RowMove]) -> None:
        """Exchange the rows of two running sequences, through the spare row."""
        if row == target:
            return
        one, other = self._running[row], self._running[target]
        self._running[row], self._running[target] = other, one
        spare = self._max_num_seqs
        moves += [
            RowMove(row, spare, one.num_computed),
            RowMove(target, row, other.num_computed),
            RowMove(spare, target, one.num_computed),
        ]

    def _admits(self, sequence: Sequence) -> bool:
        lengths = [each.num_reserved + HEADROOM for each in (*self._running, sequence)]
        return not self._running or self._budget.fits(lengths)

    def _num_decoding(self) -> int:
        return sum(not sequence.is_prefilling for sequence in self._running)

    def _fill(self, gap: int, source: int, moves: list[RowMove]) -> int:
        """Move the sequence of row source into the gap; return the new gap."""
        if gap != source:
            moved = self._running[source]
            moves.append(RowMove(source, gap, moved.num_computed))
            self._running[gap] = moved
        return source


def _awaits_another(sequence: Sequence, prefilling: Iterable[Sequence]) -> bool:
    """Whether a sequence that has not begun can soon restore tokens that another one is reading.

    It waits at most as long as it would read them itself, and never for a sequence that has not begun.
    """
    return sequence.num_computed == 0 and any(
        other.num_computed and _has_ahead(other, sequence) for other in prefilling
    )


def _has_ahead(reader: Sequence, sequence: Sequence) -> bool:
    """Whether the reader has a boundary ahead of it up to which both sequences have the same tokens, of one owner."""
    return reader.owner == sequence.owner and any(
        reader.num_computed < boundary and sequence.token_ids[:boundary] == reader.token_ids[:boundary]
        for boundary in reader.boundaries
    )


def violations(scheduler: SchedulerSnapshot, cache: CacheSnapshot, prefilling: Iterable[str]) -> list[str]:
    """Differences between the two accounts after a step, for tests; empty if they agree.

    prefilling: ids of the sequences whose prompt is not read yet.
    """
    found: list[str] = []
    names = [*scheduler.waiting, *(name for name, _ in scheduler.running)]
    if len(set(names)) != len(names):
        found.append(f"a request appears twice: {names}")
    unread = set(prefilling)
    for row, (name, computed) in enumerate(scheduler.running):
        length = cache.row_lengths[row]
        # A sequence has a row from its admission, and begins to use it with its first step.
        if length != computed and not (length is None and computed == 0):
            found.append(f"row {row} holds {length} tokens and {name} has computed {computed}")
        if computed > cache.max_model_len:
            found.append(f"{name} has {computed} tokens, beyond {cache.max_model_len}")
        if (row < scheduler.num_decoding) == (name in unread):
            found.append(f"{name} is in row {row}, on the wrong side of {scheduler.num_decoding}")
    if cache.used_bytes > cache.max_bytes:
        found.append(f"rows hold {cache.used_bytes} bytes, more than {cache.max_bytes}")
    for row in range(len(scheduler.running), len(cache.row_lengths)):
        if cache.row_lengths[row] is not None:
            found.append(f"row {row} holds {cache.row_lengths[row]} tokens and is not in use")
    return found
