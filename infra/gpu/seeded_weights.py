"""Weight files whose bytes a seed decides, so that gigabytes need not travel. It imports numpy alone.

weights.json, beside an artifact's graph, lists the tensors. fill() writes the files that they are in. Two tensors begin
at different places of one random block whose length is a prime number, so no two rows are equal, and writing is as fast
as the disk.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS_JSON = "weights.json"
EXPERTS, ROWS = "experts", "rows"  # shares that depend on the step: see SeededTensor.share

_BLOCK_VALUES = 4_194_301  # a prime


@dataclass(frozen=True, slots=True)
class SeededTensor:
    """One tensor.

    Attributes:
        file, offset, num_bytes: its place.
        dtype: "uint8" for codes, whose bytes are all equally likely; else numpy's name of its floats.
        low, high: of floats, which are uniform.
        share: what a step reads of it: "all", "experts" (those that are chosen) or "rows" (of the embedding).
    """

    name: str
    file: str
    offset: int
    num_bytes: int
    dtype: str
    low: float
    high: float
    share: str


@dataclass(frozen=True, slots=True)
class SeededWeights:
    """All tensors of an artifact, and the numbers that say how many experts a token reads."""

    tensors: Sequence[SeededTensor]
    num_experts: int
    top_k: int

    def save(self, folder: Path) -> None:
        document = {"num_experts": self.num_experts, "top_k": self.top_k, "tensors": list(map(asdict, self.tensors))}
        (folder / WEIGHTS_JSON).write_text(json.dumps(document, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> SeededWeights:
        document = json.loads((folder / WEIGHTS_JSON).read_text(encoding="utf-8"))
        tensors = [SeededTensor(**each) for each in document.pop("tensors")]
        return cls(tensors, **document)

    def bytes_read(self, batch: int) -> float:
        """Bytes of weights that a decoding step of so many sequences reads, if their tokens choose experts evenly."""
        touched = 1 - (1 - self.top_k / self.num_experts) ** batch if self.num_experts else 0.0
        shares = {EXPERTS: touched, ROWS: 0.0, "all": 1.0}
        return sum(shares[tensor.share] * tensor.num_bytes for tensor in self.tensors)


def fill(folder: Path, seed: int = 0) -> int:
    """Write the weight files of a folder that has weights.json.

    Returns:
        their bytes.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    codes = np.frombuffer(random.bytes(_BLOCK_VALUES), np.uint8)
    uniform = random.random(_BLOCK_VALUES, np.float32)
    sizes: dict[str, int] = {}
    for tensor in SeededWeights.load(folder).tensors:
        with (folder / tensor.file).open("r+b" if tensor.file in sizes else "wb") as stream:
            stream.seek(tensor.offset)
            for chunk in _chunks(tensor, codes, uniform):
                stream.write(chunk)
            sizes[tensor.file] = max(sizes.get(tensor.file, 0), stream.tell())
    return sum(sizes.values())


def _chunks(tensor: SeededTensor, codes: np.ndarray[Any, Any], uniform: np.ndarray[Any, Any]) -> Iterator[memoryview]:
    kind = np.dtype(tensor.dtype)
    block = codes if kind == np.uint8 else (tensor.low + (tensor.high - tensor.low) * uniform).astype(kind)
    left, start = tensor.num_bytes // kind.itemsize, zlib.crc32(tensor.name.encode()) % _BLOCK_VALUES
    while left:
        chunk = block[start : start + left]
        yield chunk.data.cast("B")
        left -= len(chunk)
        start = 0
