"""Sampling parameters of a request, and where its answer ends: each is declared here, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from msgspec import Meta

from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.parameter import (
    LARGE,
    MAX_BIASED_TOKENS,
    MAX_STOP_TOKENS,
    Api,
    Kind,
    Parameter,
    declaration_of,
    declared,
    everywhere,
    in_apis,
)
from qwonnx.runtime.text.stop_strings import StopStrings

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024  # characters; text that may still become a stop string is held back from the stream
MAX_LOGPROBS = 20
_THINKING_END = "</think>"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling of one request; the defaults sample from the model's own distribution.

    Fields with a declaration say in it what they do; PARAMETERS has them by name. The others are not set by users as
    they are:

    guide: the form of the answer; only tokens that it allows are chosen.
    logprobs: give the log probability of each token, and of so many of the likeliest tokens in its place, at most 20.
        They are of the scores from which the token is chosen, before the temperature. None gives none.
    begins_thinking: the answer begins in the reasoning. Stop strings count after its closing tag.
    thinking_budget: the answer begins in the reasoning, which has so many tokens at most; then it is closed. None: it
        has no bound, or there is none.

    Raises:
        InvalidRequestError: a value out of range, with its name as param.
    """

    temperature: float = declared(
        1.0,
        Kind.NUMBER,
        "Randomness of sampling: divides the logits; 0 takes the most likely token.",
        everywhere("temperature"),
        bounds=Meta(ge=0, le=2),
        low=0.0,
        high=100.0,
        recommended=True,
    )
    top_k: int | None = declared(
        None,
        Kind.WHOLE,
        "Keep this many of the most likely tokens.",
        everywhere("top_k"),
        bounds=Meta(ge=-1, lt=LARGE),  # -1 and 0 keep all
        other_bounds={Api.OLLAMA: Meta(ge=0, lt=LARGE)},
        keeps_all=True,
        recommended=True,
    )
    top_p: float = declared(
        1.0,
        Kind.NUMBER,
        "Keep the most likely tokens up to this probability.",
        everywhere("top_p"),
        bounds=Meta(ge=0, le=1),
        low=0.0,
        high=1.0,
        recommended=True,
    )
    min_p: float = declared(
        0.0,
        Kind.NUMBER,
        "Keep tokens at least this fraction as likely as the most likely one.",
        in_apis("min_p", Api.OPENAI, Api.RESPONSES, Api.OLLAMA),
        bounds=Meta(ge=0, le=1),
        low=0.0,
        high=1.0,
        recommended=True,
    )
    presence_penalty: float = declared(
        0.0,
        Kind.NUMBER,
        "Subtracted from the logits of tokens that the answer has.",
        in_apis("presence_penalty", Api.OPENAI, Api.RESPONSES, Api.OLLAMA),
        bounds=Meta(ge=-2, le=2),
        low=-2.0,
        high=2.0,
    )
    frequency_penalty: float = declared(
        0.0,
        Kind.NUMBER,
        "Subtracted from a token's logit for each time that the answer has the token.",
        in_apis("frequency_penalty", Api.OPENAI, Api.RESPONSES, Api.OLLAMA),
        bounds=Meta(ge=-2, le=2),
        low=-2.0,
        high=2.0,
    )
    repetition_penalty: float = declared(
        1.0,
        Kind.NUMBER,
        "Divides positive and multiplies negative logits of tokens in the prompt or the answer.",
        {Api.OPENAI: "repetition_penalty", Api.RESPONSES: "repetition_penalty", Api.OLLAMA: "repeat_penalty"},
        bounds=Meta(gt=0, le=100),
        low=0.01,
        high=100.0,
        recommended=True,
    )
    seed: int | None = declared(
        None,
        Kind.WHOLE,
        "Fixes the random numbers: the same request gives the same answer.",
        in_apis("seed", Api.OPENAI, Api.RESPONSES, Api.OLLAMA),
    )
    max_tokens: int | None = declared(
        None,
        Kind.WHOLE,
        "Generate at most this many tokens; by default as many as fit.",
        everywhere("max_tokens", responses="max_output_tokens", ollama="num_predict"),
        bounds=Meta(ge=1, lt=LARGE),
        by_hand=True,
    )
    stop: tuple[str, ...] = declared(
        (),
        Kind.TEXTS,
        "End the answer before this text.",
        {Api.OPENAI: "stop", Api.ANTHROPIC: "stop_sequences", Api.OLLAMA: "stop"},
        by_hand=True,
    )
    stop_token_ids: tuple[int, ...] = declared(
        (),
        Kind.TOKENS,
        "End the answer at this token, as at the model's own end tokens.",
        in_apis("stop_token_ids", Api.OPENAI),
        bounds=Meta(max_length=MAX_STOP_TOKENS),
    )
    ignore_eos: bool = declared(
        False,
        Kind.SWITCH,
        "Go on after the model's own end tokens; a form still ends the answer.",
        in_apis("ignore_eos", Api.OPENAI),
    )
    logit_bias: Mapping[int, float] = declared(
        {},
        Kind.BIASES,
        "Added to a token's logit before anything else: -100 (hardly ever) to 100 (nearly always).",
        in_apis("logit_bias", Api.OPENAI),
        bounds=Meta(max_length=MAX_BIASED_TOKENS),
    )
    guide: Guide | None = None
    logprobs: int | None = None
    begins_thinking: bool = False
    thinking_budget: int | None = None

    def __post_init__(self) -> None:
        for name, parameter in PARAMETERS.items():
            if parameter.low is not None and parameter.high is not None:
                _between(name, getattr(self, name), parameter.low, parameter.high)
        if self.top_p == 0:
            raise InvalidRequestError("top_p is 0: give more than 0, or temperature 0 for the likeliest token", "top_p")
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
        for name, parameter in PARAMETERS.items():
            value = generation_config.get(name) if parameter.recommended else None
            if value is None or (parameter.keeps_all and not value):  # transformers writes 0 for "keep all"
                continue
            number = _number(name, value)
            given[name] = int(number) if parameter.kind is Kind.WHOLE else number
        return cls(**given)


PARAMETERS: Mapping[str, Parameter] = {
    each.name: parameter for each in fields(SamplingParams) if (parameter := declaration_of(each.metadata)) is not None
}
"""The parameters that users set, by the names of the fields."""


def _between(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidRequestError(f"{name} is {value}: give a number from {low:g} to {high:g}", name)


def _number(name: str, value: Any) -> float:
    # Compare before conversion: a JSON integer may be larger than any float, and 1e999 is infinite.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e9 < value < 1e9:
        raise InvalidRequestError(f"generation_config.json has {name} {value!r}: give a number", name)
    return float(value)
