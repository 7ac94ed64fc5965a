"""Answers for rows of a data set, many at once on one engine: an actor class for Ray Data's map_batches.

    ray.data.read_parquet(...).map_batches(
        Answers, fn_constructor_args=["artifact"], concurrency=4, batch_size=64, num_cpus=8
    )

A batch is a dictionary of columns. This module imports no Ray.
"""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qwonnx.runtime import Engine, FinishReason, RequestOutput, RuntimeSettings, SamplingParams
from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.text.chat_prompt import render_chat

Column = npt.NDArray[Any]


class Answers:
    """Answers the questions in a column. Ray makes one in each actor, and calls it with one batch after the other.

    Args:
        artifact: the artifact's folder, on every machine.
        settings: of the engine; None: from QWONNX_* variables.
        params: of the answers; None: the model's own, with at most 512 tokens.
        column: the questions: texts.
        into: a new column for the answers' texts; the column f"{into}_error" says why one is not whole, else it is
            empty.
        system: a text that precedes every question.

    Raises:
        the errors of Engine.open().
    """

    def __init__(
        self,
        artifact: str | os.PathLike[str],
        settings: RuntimeSettings | None = None,
        params: SamplingParams | None = None,
        *,
        column: str = "question",
        into: str = "answer",
        system: str | None = None,
    ) -> None:
        self._engine = Engine.open(artifact, settings or RuntimeSettings.from_environment())
        self._params = params or replace(self._engine.default_sampling, max_tokens=512)
        self._column, self._into, self._system = column, into, system
        self._engine.start()

    def __call__(self, batch: dict[str, Column]) -> dict[str, Column]:
        """The batch with two more columns; the order of its rows stays."""
        room = threading.Semaphore(self._engine.settings.max_num_seqs + self._engine.settings.max_queued_requests)
        answers = [_Answer(room) for _ in batch[self._column]]
        for question, answer in zip(batch[self._column].tolist(), answers, strict=True):
            self._ask(question, answer)
        for answer in answers:
            answer.ended.wait()
        texts = np.array([answer.text for answer in answers], dtype=object)
        errors = np.array([answer.error for answer in answers], dtype=object)
        return {**batch, self._into: texts, f"{self._into}_error": errors}

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def _ask(self, question: object, answer: _Answer) -> None:
        answer.room.acquire()
        try:
            prompt = render_chat(self._engine, self._messages(question), [], {"enable_thinking": False})
            self._engine.submit(prompt.token_ids, self._params, answer, snapshot_at=prompt.snapshot_at)
        except InvalidRequestError as error:
            answer.end(str(error))

    def _messages(self, question: object) -> list[dict[str, Any]]:
        if not isinstance(question, str):
            raise InvalidRequestError(f"{self._column} is {type(question).__name__}: give texts")
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        return [*system, {"role": "user", "content": question}]


class _Answer:
    """The receiver of one request's outputs."""

    def __init__(self, room: threading.Semaphore) -> None:
        self.room, self.text, self.error, self.ended = room, "", "", threading.Event()

    def __call__(self, output: RequestOutput) -> None:
        self.text += output.text
        if output.finish_reason is FinishReason.LENGTH:
            self.end("the answer reached its limit of tokens")
        elif output.finish_reason is not None:
            self.end("" if output.finish_reason is FinishReason.STOP else output.error or str(output.finish_reason))

    def end(self, error: str) -> None:
        self.error = error
        self.room.release()
        self.ended.set()
