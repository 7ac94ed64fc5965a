"""Admission: checks of a request in the caller's thread, before the engine gets it.

This module knows the tokenizer's ids and the length limit. It does not know rows, other requests or any API.
"""

from __future__ import annotations

from collections import abc
from typing import TYPE_CHECKING

from msgspec import Struct

from qwonnx.runtime.engine.generation import Generation
from qwonnx.runtime.engine.request import RequestOutput
from qwonnx.runtime.errors import GuideError, InvalidRequestError
from qwonnx.runtime.sampling.entropy import fresh_id
from qwonnx.runtime.sampling.grammar import GrammarCompiler
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.sampling.thinking_budget import ThinkingBudget
from qwonnx.runtime.scheduling.sequence import Sequence
from qwonnx.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from qwonnx.runtime.adapters.adapter_folder import AdapterFolder


class Admission(Struct, frozen=True):
    """The admission of requests to one engine.

    Attributes:
        tokenizer: of prompts and answers.
        eos_token_ids: the model's own end tokens.
        num_tokens: ids below this are accepted and sampled; the embedding has rows beyond the tokenizer's tokens.
        max_model_len: tokens of prompt and answer together.
        grammars: compiler of guides.
    """

    tokenizer: Tokenizer
    eos_token_ids: frozenset[int]
    num_tokens: int
    max_model_len: int
    grammars: GrammarCompiler

    def admit(
        self,
        prompt: list[int],
        params: SamplingParams,
        on_output: abc.Callable[[RequestOutput], None],
        *,
        request_id: str | None,
        boundaries: tuple[int, ...],
        deadline: float | None,
        owner: str,
        generated: tuple[int, ...] = (),
        adapter: AdapterFolder | None = None,
    ) -> Generation:
        """Check a request and prepare it for the scheduler. For the other arguments, see Engine.submit().

        Args:
            boundaries: ascending positions within the prompt at which its state is kept.
            adapter: that answers.

        Raises:
            InvalidRequestError: an empty prompt, an unknown token id, a prompt that leaves no room, a guide that
                cannot be followed, or an answer that has ended before.
            QueueFullError: too many guides are being compiled.
            EngineClosedError: the compiler of guides was closed.
        """
        max_tokens = self.settle_max_tokens(prompt, params)
        guide = params.guide
        if self.unknown_token(generated) is not None or len(generated) >= max_tokens:
            raise InvalidRequestError("the answer cannot go on after these tokens: start it again", "generated")
        num_prompt = len(prompt)
        made = Generation(
            Sequence(request_id or fresh_id(), [*prompt, *generated], num_prompt, boundaries=boundaries, owner=owner),
            params,
            self.tokenizer,
            self.eos_token_ids,
            max_tokens,
            self.num_tokens,
            on_output,
            deadline,
            None if guide is None else self.grammars.constraint(guide, ignore_eos=params.ignore_eos, owner=owner),
            None if params.thinking_budget is None else ThinkingBudget(params.thinking_budget, self.tokenizer),
            adapter,
        )
        if generated:
            try:
                made.resume()
            except GuideError as error:
                raise InvalidRequestError(str(error), "generated") from error
        return made

    def settle_max_tokens(self, prompt: abc.Sequence[int], params: SamplingParams) -> int:
        """The token limit of an answer: the requested one, as far as there is room.

        Raises:
            InvalidRequestError: an empty prompt, an unknown token id, or a prompt without room for a token after it.
        """
        room = self.max_model_len - len(prompt)
        if not prompt:
            raise InvalidRequestError("the prompt is empty: give at least one token", "prompt")
        for param, token_ids in (("prompt", prompt), ("logit_bias", params.logit_bias)):
            if (wrong := self.unknown_token(token_ids)) is not None:
                raise InvalidRequestError(f"token id {wrong} is not one of the {self.num_tokens} tokens", param)
        if room < 1:
            raise InvalidRequestError(
                f"the prompt has {len(prompt)} tokens and at most {self.max_model_len - 1} fit: shorten it",
                "prompt",
                "context_length_exceeded",
            )
        return room if params.max_tokens is None else min(params.max_tokens, room)

    def unknown_token(self, token_ids: abc.Iterable[int]) -> int | None:
        """The first id that the tokenizer does not know, or None."""
        return next((token for token in token_ids if not 0 <= token < self.num_tokens), None)
