"""A step as parts of a frame: its place, its inputs, and the hidden state that comes from the stage before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwonnx.runtime.model.stages.wire import Part, WireError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StageLimits:
    """What an engine's steps need at most: rows of states, tokens of a row, and tokens of a step."""

    num_rows: int
    max_model_len: int
    max_tokens: int

    def packed(self) -> bytes:
        return np.asarray([self.num_rows, self.max_model_len, self.max_tokens], "<i8").tobytes()

    @classmethod
    def unpacked(cls, part: Part) -> StageLimits:
        """
        Raises:
            WireError: the part has no such numbers.
        """
        if len(part) != 24:
            raise WireError("it does not say how large its steps are")
        return cls(*np.frombuffer(part, "<i8").tolist())


@dataclass(frozen=True, slots=True)
class StageStep:
    """One rectangle of tokens, of consecutive rows.

    past_lengths [rows], input_ids [rows, width], hidden_states [rows, width, hidden_size]; num_logits is 1 if logits
    after each row's last token are wanted, otherwise 0.
    """

    first_row: int
    num_logits: int
    past_lengths: IntArray
    input_ids: IntArray
    hidden_states: FloatArray

    def packed(self) -> list[Part]:
        rows, width = self.input_ids.shape
        return [
            np.asarray([self.first_row, rows, width, self.num_logits], "<i8").tobytes(),
            self.past_lengths.astype("<i8", copy=False).tobytes(),
            self.input_ids.astype("<i8", copy=False).tobytes(),
            self.hidden_states.astype("<f4", copy=False).tobytes(),
        ]

    @classmethod
    def unpacked(cls, parts: Sequence[Part], limits: StageLimits, hidden_size: int) -> StageStep:
        """
        Raises:
            WireError: the parts are no step within these limits.
        """
        if len(parts) != 4 or len(parts[0]) != 32:
            raise WireError("it sends a malformed step")
        first, rows, width, num_logits = np.frombuffer(parts[0], "<i8").tolist()
        fits = rows >= 1 and first >= 0 and first + rows <= limits.num_rows and num_logits in (0, 1)
        if not fits or width < 1 or rows * width > limits.max_tokens:
            raise WireError(f"it sends a step of {rows} rows from {first} on with {width} tokens, which has no room")
        expected = [8 * rows, 8 * rows * width, 4 * rows * width * hidden_size]
        if [len(part) for part in parts[1:]] != expected:
            raise WireError("it sends a step whose arrays have other sizes")
        lengths = np.frombuffer(parts[1], "<i8").astype(np.int64)
        if lengths.min() < 0 or lengths.max() + width > limits.max_model_len:
            raise WireError(f"it sends a step beyond {limits.max_model_len} tokens")
        return cls(
            first,
            num_logits,
            lengths,
            np.frombuffer(parts[2], "<i8").astype(np.int64).reshape(rows, width),
            np.frombuffer(parts[3], "<f4").astype(np.float32).reshape(rows, width, hidden_size),
        )
