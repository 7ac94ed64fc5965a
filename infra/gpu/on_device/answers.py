"""Answers of an engine to prompts of token ids, greedy: what the bundle expects, and what a device gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.gpu.on_device.finding import LOG_SEVERITY
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import RequestOutput
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings

ANSWERS_JSON = "answers.json"
MAX_TOKENS = 32
_ROWS = 8


@dataclass(frozen=True, slots=True)
class Answers:
    """Prompts and their answers, as token ids."""

    prompts: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]

    def save(self, folder: Path) -> None:
        (folder / ANSWERS_JSON).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Answers:
        return cls(**json.loads((folder / ANSWERS_JSON).read_text(encoding="utf-8")))


def answer(artifact: Path, prompts: Sequence[Sequence[int]], *, captured: bool = True) -> list[list[int]]:
    """The answers to all prompts, several at a time. Raises RuntimeError if a request ends with an error.

    Args:
        artifact: for any device.
        prompts: token ids.
        captured: whether a device that captures replays its steps.
    """
    longest = max(map(len, prompts)) + MAX_TOKENS
    settings = RuntimeSettings(
        max_num_seqs=_ROWS, max_model_len=longest, max_queued_requests=len(prompts), log_severity=LOG_SEVERITY
    )
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    outputs: list[list[RequestOutput]] = [[] for _ in prompts]
    with Engine.open(artifact, settings) as engine:
        if captured:
            engine.capture()
        for prompt, received in zip(prompts, outputs, strict=True):
            engine.submit(list(prompt), params, received.append)
        while engine.num_live_requests:
            engine.step()
    for received in outputs:
        if received[-1].error is not None:
            raise RuntimeError(received[-1].error)
    return [[token for output in received for token in output.token_ids] for received in outputs]


def first_difference(found: Sequence[int], expected: Sequence[int]) -> int | None:
    """The first place where two answers differ; None if they are equal."""
    for place, (one, other) in enumerate(zip(found, expected, strict=False)):
        if one != other:
            return place
    return None if len(found) == len(expected) else min(len(found), len(expected))
