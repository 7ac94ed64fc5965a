"""The logits of one row: all of them, and the largest ones where the graph chose these.

A device keeps the logits of a whole vocabulary, a megabyte a row, and gives back the largest ones. Most requests need
no others; those that do read the whole row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from msgspec import Struct

FloatArray = npt.NDArray[np.float32]


class TopLogits(Struct, frozen=True):
    """The largest logits of a row, in falling order. Every other token's logit is at most the last one.

    ids: int64 `[k]`.
    values: float32 `[k]`.
    """

    ids: npt.NDArray[np.int64]
    values: FloatArray


class RowLogits(Struct, frozen=True):
    """The logits of one row, until the next step.

    read_all: gives all of them, `[vocab_size]`; from a device it copies them.
    top: None: the graph does not choose the largest.
    """

    read_all: Callable[[], FloatArray]
    top: TopLogits | None = None
