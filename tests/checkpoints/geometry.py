"""The large checkpoint: the geometry of Qwen3.5-35B-A3B, cut to 4 layers and a tenth of the vocabulary; 6.9 GB.

For benchmarks and for the exporter's memory. Values are normal, taken in turn from one random block whose length is a
prime number: no two rows are equal, and writing is as fast as the disk.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.checkpoints.config_json import (
    GEOMETRY_TEXT,
    config_json,
    generation_config,
    text_config,
)
from tests.checkpoints.safetensors_files import StoredTensor, encode, write_sharded
from tests.checkpoints.tensors import TensorPlan, lm_head, text_tensors, vision_tensors
from tests.checkpoints.tiny import chat_template, values, write_json
from tests.checkpoints.tokenizer import build_tokenizer, token_ids, tokenizer_config

_ARCHITECTURE = "Qwen3_5MoeForConditionalGeneration"
_BLOCK_VALUES = 8_388_617  # a prime: rows of a power of two never start at the same place of the block twice
_MAX_SHARD_BYTES = 5_000_000_000


def write_geometry(folder: Path, *, seed: int = 0) -> Path:
    """Write the checkpoint into `folder`, which is made if it is missing, and return it. About 200 MB of memory."""
    ids = token_ids()
    text = text_config(_ARCHITECTURE, GEOMETRY_TEXT, ids, {})
    config = config_json(_ARCHITECTURE, text, ids)
    block = np.random.Generator(np.random.PCG64(seed)).standard_normal(_BLOCK_VALUES, np.float32)
    plans = [
        *text_tensors(text, prefix="model.language_model."),
        lm_head(text),
        *vision_tensors(config["vision_config"]),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_sharded(folder, [stored_row(plan, block, seed) for plan in plans], _MAX_SHARD_BYTES)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation_config(ids))
    write_json(folder / "tokenizer_config.json", tokenizer_config())
    (folder / "tokenizer.json").write_text(build_tokenizer(), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(chat_template(), encoding="utf-8")
    return folder


def stored_row(plan: TensorPlan, block: np.ndarray, seed: int) -> StoredTensor:
    dtype = "F32" if plan.keep_float32 else "BF16"
    # Small tensors carry the meaning of norms and gates: they are drawn one by one, like the tiny checkpoint's.
    if np.prod(plan.shape) < 1 << 20:
        return StoredTensor(plan.name, dtype, plan.shape, lambda: (encode(values(plan, seed), dtype),))
    return StoredTensor(plan.name, dtype, plan.shape, _tiled(plan, block, dtype))


def _tiled(plan: TensorPlan, block: np.ndarray, dtype: str) -> Callable[[], Iterator[memoryview]]:
    """The scaled block, repeated for all values of the tensor, from a place that the name decides."""

    def chunks() -> Iterator[memoryview]:
        scaled = memoryview(encode(plan.low + plan.high * block, dtype))
        item_bytes = len(scaled) // _BLOCK_VALUES
        start = zlib.crc32(plan.name.encode()) % _BLOCK_VALUES * item_bytes
        left = int(np.prod(plan.shape)) * item_bytes
        while left:
            chunk = scaled[start : start + left]
            yield chunk
            left -= len(chunk)
            start = 0

    return chunks
