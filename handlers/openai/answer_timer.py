"""The times of an answer, in the names that llama.cpp's server gives them."""

from __future__ import annotations

import time

import msgspec

from qwonnx.handlers.chat.parts import Begun, End, Part


class Timings(msgspec.Struct):
    """cache_n, prompt_n, predicted_n: tokens found, read and generated. Times are in milliseconds."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float


class AnswerTimer:
    """Notes when an answer begins and ends; prompt_ms includes the wait for a row."""

    def __init__(self) -> None:
        self._asked_at = time.monotonic()
        self._begun_at = self._ended_at = self._asked_at
        self._num_cached = self._num_read = self._num_generated = 0

    def note(self, part: Part) -> None:
        """Take the next part."""
        match part:
            case Begun(num_prompt, num_cached):
                self._begun_at = time.monotonic()
                self._num_cached, self._num_read = num_cached, num_prompt - num_cached
            case End(_, usage):
                self._ended_at = time.monotonic()
                self._num_generated += usage.num_generated_tokens

    def timings(self) -> Timings:
        prompt, decode = self._begun_at - self._asked_at, self._ended_at - self._begun_at
        return Timings(
            self._num_cached,
            self._num_read,
            round(1e3 * prompt, 3),
            _rate(self._num_read, prompt),
            self._num_generated,
            round(1e3 * decode, 3),
            _rate(self._num_generated - 1, decode),
        )


def _rate(number: int, seconds: float) -> float:
    return round(max(0, number) / seconds, 3) if seconds > 0 else 0.0
