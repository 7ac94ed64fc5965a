"""One accepted request: each new token becomes a delta of its answer; the last delta has a finish reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from qwonnx.runtime.cache.prefix_cache import Snapshot
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.sampling.grammar import Constraint
from qwonnx.runtime.sampling.logits import RowLogits
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.sampling.sampler import Sampler
from qwonnx.runtime.sampling.scores import SampledLogprobs
from qwonnx.runtime.sampling.thinking_budget import ThinkingBudget
from qwonnx.runtime.scheduling.sequence import Sequence
from qwonnx.runtime.text.detokenizer import Detokenizer
from qwonnx.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # not needed without adapters, so a server starts sooner
    from qwonnx.runtime.adapters.adapter_folder import AdapterFolder


class Generation:
    """A request's sampling, text and stop conditions; the scheduler knows only its sequence.

    Args:
        sequence: its tokens; push() appends to them. Those after the prompt were generated before: call resume().
        params: how to sample, when to stop.
        tokenizer: for the text.
        end_token_ids: the model's own end tokens.
        max_tokens: tokens to generate at most, settled against max_model_len.
        num_sampled_tokens: ids below this may be sampled.
        on_output: called with each delta.
        deadline: a time.monotonic() value, or None.
        constraint: made from the guide, or None.
        thinking_budget: bounds the reasoning that the answer begins with, or None.
        adapter: that answers, or None.
    """

    def __init__(
        self,
        sequence: Sequence,
        params: SamplingParams,
        tokenizer: Tokenizer,
        end_token_ids: Iterable[int],
        max_tokens: int,
        num_sampled_tokens: int,
        on_output: Callable[[RequestOutput], None],
        deadline: float | None = None,
        constraint: Constraint | None = None,
        thinking_budget: ThinkingBudget | None = None,
        adapter: AdapterFolder | None = None,
    ) -> None:
        self.sequence = sequence
        self.adapter = adapter
        self.deadline = deadline
        self.accepted_at = time.monotonic()
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None  # for the metrics
        self.has_begun = False
        self.num_resumed = sequence.num_generated
        self._sampler = Sampler(params, sequence.token_ids[: sequence.num_prompt_tokens], num_sampled_tokens)
        self._constraint = constraint
        self._thinking_budget = thinking_budget
        self._num_logprobs = params.logprobs
        self._logprobs: SampledLogprobs | None = None  # of the chosen token
        self.on_output = on_output
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_strings = params.stop_strings()
        # A guide allows an end token only where the answer may end, and with ignore_eos only where it must.
        ignored = params.ignore_eos and constraint is None
        self._stop_tokens = frozenset(params.stop_token_ids) | (frozenset() if ignored else frozenset(end_token_ids))
        self._max_tokens = max_tokens
        self.num_cached_tokens = 0  # of the prompt, restored instead of computed
        self.snapshot: Snapshot | None = None  # the last one that it restored or stored; pinned
        self.restored: Snapshot | None = None  # the one that it began with
        self.suspect: Snapshot | None = None  # it failed after this beginning, and is read again without any

    @property
    def request_id(self) -> str:
        return self.sequence.request_id

    def resume(self) -> None:
        """Take the generated tokens of the sequence as an answer that was given, without outputs.

        Raises:
            GuideError: the guide does not allow them, or ends with them.
        """
        generated = self.sequence.token_ids[self.sequence.num_prompt_tokens :]
        self._sampler.resume(generated)
        if self._constraint is not None:
            self._constraint.resume(generated)
        for token_id in generated:
            if self._thinking_budget is not None:
                self._thinking_budget.accept(token_id)
            self._stop_strings.push(self._detokenizer.push(token_id))

    def begin(self) -> None:
        """Start to compute the first mask, while the prompt is read."""
        if self._constraint is not None:
            self._constraint.begin()

    def choose(self, logits: RowLogits) -> int:
        """Choose the next token; push() takes it.

        Raises:
            SessionError: the logits are not finite.
            GuideError: the guide cannot continue.
        """
        token_id = None if self._thinking_budget is None else self._thinking_budget.forced()
        if token_id is not None:
            self._sampler.resume((token_id,))
            self._logprobs = None
        else:
            token_id = self._sampled(logits)
        if self._constraint is not None:
            self._constraint.accept(token_id)
        if self._thinking_budget is not None:
            self._thinking_budget.accept(token_id)
        return token_id

    def _sampled(self, logits: RowLogits) -> int:
        allowed = None if self._constraint is None else self._constraint.allowed()
        if self._num_logprobs is not None:
            scores = self._sampler.scores(logits.read_all(), allowed)
            chosen = self._sampler.choose(scores)
            self._logprobs = scores.logprobs(chosen, self._num_logprobs)
            return chosen
        token_id = None if logits.top is None else self._sampler.sample_top(logits.top, allowed)
        return self._sampler.sample(logits.read_all(), allowed) if token_id is None else token_id

    def push(self, token_id: int) -> RequestOutput:
        """Take the next token; the delta's finish_reason says whether it was the last."""
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        self.sequence.token_ids.append(token_id)
        if token_id in self._stop_tokens:
            self._logprobs = None
            return self._output(self._stop_strings.finish(), (token_id,), FinishReason.STOP)
        text, stopped = self._stop_strings.push(self._detokenizer.push(token_id))
        if stopped:
            return self._output(text, (token_id,), FinishReason.STOP)
        if self._constraint is not None and self._constraint.is_complete:
            return self._output(text + self._stop_strings.finish(), (token_id,), FinishReason.STOP)
        if self.sequence.num_generated >= self._max_tokens:
            return self._output(text + self._stop_strings.finish(), (token_id,), FinishReason.LENGTH)
        return self._output(text, (token_id,), None)

    def end(self, reason: FinishReason, error: str | None = None) -> RequestOutput:
        """The last output of a request that ends without a token: aborted, or failed."""
        return self._output("", (), reason, error)

    def _output(
        self, text: str, token_ids: tuple[int, ...], reason: FinishReason | None, error: str | None = None
    ) -> RequestOutput:
        return RequestOutput(
            request_id=self.request_id,
            text=text,
            token_ids=token_ids,
            finish_reason=reason,
            num_prompt_tokens=self.sequence.num_prompt_tokens,
            num_generated_tokens=self.sequence.num_generated,
            num_cached_tokens=self.num_cached_tokens,
            error=error,
            stop_string=self._stop_strings.found,
            logprobs=self._logprobs if token_ids else None,
        )
