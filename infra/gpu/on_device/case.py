"""One operator with inputs and the outputs of its body, as operator_cases.py writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CASES_JSON = "cases.json"
Array = npt.NDArray[Any]

# A kernel may add up in another order than the twin. A wrong attribute or layout is off by a tenth at least.
_LEAST_BOUND, _TIMES_EMULATED = 0.01, 4.0


@dataclass(frozen=True, slots=True)
class OperatorCase:
    """A graph of one operator, and one step.

    Attributes:
        name: unique in its file.
        graph, arrays: files beside cases.json. Arrays are "input:NAME" and "expected:NAME".
        inputs, outputs: dtypes by name, as the graph has them.
        in_place: outputs by the input whose memory they take.
        on_host: inputs that the kernel reads on the host.
        emulated: by output, the relative error of the float16 twin.
    """

    name: str
    graph: str
    arrays: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    in_place: Mapping[str, str]
    on_host: tuple[str, ...]
    emulated: Mapping[str, float]

    def bound(self, output: str) -> float:
        """The largest relative error that counts as equal."""
        return max(_LEAST_BOUND, _TIMES_EMULATED * self.emulated[output])


def load_cases(folder: Path) -> Iterator[OperatorCase]:
    """The cases of a folder, in their order."""
    for document in json.loads((folder / CASES_JSON).read_text(encoding="utf-8")):
        yield OperatorCase(**document)


def relative_error(found: Array, expected: Array) -> float:
    """The root of the mean squared difference, as a share of the same of the expected values; of codes, if it is ints.

    Bytes hold two codes of four bits each. Not a number counts as infinitely far.
    """
    actual, wanted = _values(found), _values(expected)
    size = float(np.sqrt(np.mean(wanted**2)))
    difference = float(np.sqrt(np.mean((actual - wanted) ** 2)))
    if not np.isfinite(difference):
        return float("inf")
    return difference / size if size else difference


def _values(array: Array) -> npt.NDArray[np.float64]:
    if array.dtype == np.uint8:
        array = np.stack([array & 15, array >> 4]).astype(np.int16) - 8
    return array.astype(np.float64)
