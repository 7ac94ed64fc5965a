"""Write safetensors files in bounded memory: headers first, then each tensor's bytes as they are produced.

The format: eight bytes of header length (little-endian), the header as JSON padded with spaces to a multiple of eight,
then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ITEM_BYTES = {"U8": 1, "I8": 1, "I64": 8, "BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "I32": 4}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it will be stored; `chunks` gives its bytes, in order, once."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes | memoryview]]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def encode(values: np.ndarray, dtype: str) -> bytes:
    """float32 values as the bytes of a stored dtype; BF16 and F16 round to nearest, ties to even."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16).tobytes()
    return np.ascontiguousarray(values, np.float32 if dtype == "F32" else np.float16).tobytes()


def write_file(path: Path, tensors: Sequence[StoredTensor]) -> None:
    """Write one safetensors file holding `tensors`, in their order."""
    with path.open("wb") as file:
        file.write(_header(tensors))
        for tensor in tensors:
            written = sum(file.write(chunk) for chunk in tensor.chunks())
            assert written == tensor.num_bytes, f"{tensor.name}: {written} bytes instead of {tensor.num_bytes}"


def write_sparse_file(path: Path, tensors: Sequence[StoredTensor]) -> None:
    """The same with a hole instead of values: they read as zeros, and take no space on the disk."""
    with path.open("wb") as file:
        header_bytes = file.write(_header(tensors))
        file.truncate(header_bytes + sum(tensor.num_bytes for tensor in tensors))


def write_sharded(folder: Path, tensors: Sequence[StoredTensor], max_shard_bytes: int) -> None:
    """Write `tensors` over as many shards as they need, and the index."""
    shards: list[list[StoredTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.num_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.num_bytes
    write_shards(folder, shards, write_file)


def split_evenly(tensors: Sequence[StoredTensor], num_shards: int) -> list[list[StoredTensor]]:
    """Split `tensors` into shards of equal size; a tensor belongs to the shard of its first byte."""
    total = sum(tensor.num_bytes for tensor in tensors)
    shards: list[list[StoredTensor]] = [[] for _ in range(num_shards)]
    start = 0
    for tensor in tensors:
        shards[start * num_shards // total].append(tensor)
        start += tensor.num_bytes
    assert all(shards), "a tensor spans more than a shard"
    return shards


def write_shards(
    folder: Path,
    shards: Sequence[Sequence[StoredTensor]],
    write: Callable[[Path, Sequence[StoredTensor]], None],
) -> None:
    """Write shards and their index; names as in the published checkpoints."""
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model.safetensors-{number:05}-of-{len(shards):05}.safetensors"
        write(folder / name, shard)
        weight_map.update((tensor.name, name) for tensor in shard)
    index = {
        "metadata": {"total_size": sum(tensor.num_bytes for shard in shards for tensor in shard)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(tensors: Sequence[StoredTensor]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.num_bytes],
        }
        offset += tensor.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
