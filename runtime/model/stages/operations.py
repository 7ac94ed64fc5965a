"""Operations on the rows of a stage, as five numbers each. They wait for the next frame, and need no answer."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from qwonnx.runtime.model.stages.wire import Part, WireError

_WIDTH = 5


class Code(IntEnum):
    """Operations of StateBuffers, with their arguments."""

    CLEAR = 1  # row
    MOVE = 2  # source, target, tokens
    DISCARD = 3  # row, start, end
    DISCARD_STATES = 4  # row
    COPY_OUT = 5  # row, start, end, segment
    RESTORE = 6  # row, segment, 1 if it is the last one
    DROP = 7  # segment


class Operation(NamedTuple):
    """One operation; arguments that a code does not need are 0."""

    code: Code
    a: int
    b: int = 0
    c: int = 0
    d: int = 0


def packed(operations: Sequence[Operation]) -> bytes:
    """Operations as a part of a frame."""
    return np.asarray(operations, "<i8").tobytes()


def unpacked(part: Part) -> list[Operation]:
    """The operations of a part of a frame.

    Raises:
        WireError: the part has no such operations.
    """
    if len(part) % (8 * _WIDTH):
        raise WireError("it sends half an operation")
    try:
        rows = np.frombuffer(part, "<i8").reshape(-1, _WIDTH).tolist()
        return [Operation(Code(code), *arguments) for code, *arguments in rows]
    except ValueError as error:
        raise WireError(f"it sends an unknown operation ({error})") from error
