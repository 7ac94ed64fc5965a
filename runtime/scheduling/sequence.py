"""The scheduler's data: the tokens of a request, and the rectangle of tokens that a step computes."""

from __future__ import annotations

from msgspec import Struct


class Sequence(Struct, eq=False):
    """The tokens of one request. Those up to num_computed are in the states of its row.

    Attributes:
        boundaries: ascending positions within the prompt; a chunk does not cross the next one.
        owner: whose kept prefixes it may use. Only sequences of one owner wait for each other's prompts.
        adapter_slot: from which its row reads an adapter; 0: none.
        num_known: tokens that are read in chunks: the prompt, and tokens generated before a preemption.
        reads_alone: its chunks do not share a step, because a shared step failed.
    """

    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    num_computed: int = 0
    boundaries: tuple[int, ...] = ()
    owner: str = ""
    adapter_slot: int = 0
    num_known: int = 0  # set below
    reads_alone: bool = False
    arrival: int = 0
    last_turn: int = 0

    def __post_init__(self) -> None:
        self.num_known = len(self.token_ids)

    @property
    def is_prefilling(self) -> bool:
        return self.num_computed < self.num_known

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_reserved(self) -> int:
        """Tokens that it will hold after its chunks or its next step."""
        return max(self.num_known, self.num_computed + 1)


class StepPlan(Struct, frozen=True):
    """One rectangle: num_tokens of each of these sequences, which hold consecutive rows from first_row on.

    wants_logits is False if no sequence reaches the end of its tokens, so that no token is sampled.
    """

    first_row: int
    sequences: tuple[Sequence, ...]
    num_tokens: int
    wants_logits: bool

    @property
    def sampled(self) -> tuple[int, ...]:
        """Indices of the sequences that get a token after the step. Read this before commit()."""
        lengths = ((sequence.num_computed + self.num_tokens, len(sequence.token_ids)) for sequence in self.sequences)
        return tuple(index for index, (computed, known) in enumerate(lengths) if computed == known)
