"""Sampling parameters of a request, and where its answer ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.text.stop_strings import StopStrings

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024  # characters; text that may still become a stop string is held back from the stream
MAX_BIASED_TOKENS = 300
MAX_LOGPROBS = 20
_THINKING_END = "</think>"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling of one request; the defaults sample from the model's own distribution.

    temperature: divides the logits; 0 takes the most likely token.
    top_k: keeps the k most likely tokens; None keeps all.
    top_p: keeps the most likely tokens whose probabilities reach this sum.
    min_p: keeps tokens at least this fraction as likely as the most likely one.
    presence_penalty, frequency_penalty: subtracted from the logits of tokens generated so far, once and per occurrence.
    repetition_penalty: divides positive and multiplies negative logits of tokens in the prompt or generated so far.
    seed: fixes the random numbers, which do not depend on other requests; None takes new ones.
    max_tokens: tokens to generate at most, and never more than fit into max_model_len; None is as many as fit.
    stop: strings that end the answer and are not part of it.
    stop_token_ids: tokens that end the answer, in addition to the model's own.
    ignore_eos: the model's own end tokens do not end the answer; a guide still ends it where nothing more may follow.
    logit_bias: added to the logits of these tokens before anything else, from -100 (hardly ever) to 100 (nearly always)
        for at most 300 tokens.
    guide: the form of the answer; only tokens that it allows are chosen.
    logprobs: give the log probability of each token, and of so many of the likeliest tokens in its place, at most 20.
        They are of the scores from which the token is chosen, before the temperature. None gives none.
    begins_thinking: the answer begins in the reasoning. Stop strings count after its closing tag.
    thinking_budget: the answer begins in the reasoning, which has so many tokens at most; then it is closed. None: it
        has no bound, or there is none.

    Raises:
        InvalidRequestError: a value out of range, with its name as param.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)  # a dict has no hash; equality counts it
    guide: Guide | None = None
    logprobs: int | None = None
    begins_thinking: bool = False
    thinking_budget: int | None = None

    def __post_init__(self) -> None:
        _between("temperature", self.temperature, 0.0, 100.0)
        _between("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise InvalidRequestError("top_p is 0: give more than 0, or temperature 0 for the likeliest token", "top_p")
        _between("min_p", self.min_p, 0.0, 1.0)
        _between("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _between("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _between("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        if self.top_k is not None and self.top_k < 1:
            raise InvalidRequestError(f"top_k is {self.top_k}: give at least 1, or leave it out to keep all", "top_k")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidRequestError(f"max_tokens is {self.max_tokens}: give at least 1", "max_tokens")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise InvalidRequestError(f"logprobs is {self.logprobs}: give 0 to {MAX_LOGPROBS}", "logprobs")
        if self.thinking_budget is not None and self.thinking_budget < 0:
            message = f"thinking_budget is {self.thinking_budget}: give at least 0"
            raise InvalidRequestError(message, "thinking_budget")
        if self.seed is not None and not -(1 << 63) <= self.seed < 1 << 63:
            raise InvalidRequestError(f"seed is {self.seed}: give a 64-bit integer", "seed")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(f"{len(self.stop)} stop strings: give at most {MAX_STOP_STRINGS}", "stop")
        for text in self.stop:
            if not 1 <= len(text) <= MAX_STOP_LENGTH:
                message = f"a stop string has {len(text)} characters: give 1 to {MAX_STOP_LENGTH}"
                raise InvalidRequestError(message, "stop")
        if any(token < 0 for token in self.stop_token_ids):
            raise InvalidRequestError("stop_token_ids holds a negative id: give token ids", "stop_token_ids")
        if len(self.logit_bias) > MAX_BIASED_TOKENS:
            message = f"logit_bias has {len(self.logit_bias)} tokens: give at most {MAX_BIASED_TOKENS}"
            raise InvalidRequestError(message, "logit_bias")
        for bias in self.logit_bias.values():
            _between("logit_bias", bias, -100.0, 100.0)

    def stop_strings(self) -> StopStrings:
        """Finds the stop strings in the text of one answer."""
        return StopStrings(self.stop, _THINKING_END if self.begins_thinking else "")

    @classmethod
    def defaults_from(cls, generation_config: Mapping[str, Any]) -> SamplingParams:
        """The sampling a checkpoint recommends in its generation_config.json.

        Other keys are ignored; do_sample false means temperature 0, as in transformers.

        Raises:
            InvalidRequestError: a recommended value is out of range.
        """
        if generation_config.get("do_sample") is False:
            return cls(temperature=0.0)
        given: dict[str, Any] = {}
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = generation_config.get(name)
            if value is not None:
                given[name] = _number(name, value)
        top_k = generation_config.get("top_k")
        if top_k:  # transformers writes 0 for "keep all"
            given["top_k"] = int(_number("top_k", top_k))
        return cls(**given)


def _between(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidRequestError(f"{name} is {value}: give a number from {low:g} to {high:g}", name)


def _number(name: str, value: Any) -> float:
    # Compare before conversion: a JSON integer may be larger than any float, and 1e999 is infinite.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e9 < value < 1e9:
        raise InvalidRequestError(f"generation_config.json has {name} {value!r}: give a number", name)
    return float(value)
