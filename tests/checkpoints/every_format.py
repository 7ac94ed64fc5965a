"""Every quantised format by name, written from a float checkpoint: `python -m tests.checkpoints quantized OUT`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints.quantized_formats import Matrix, fp8_matrix, gptq_matrix, integers, write_quantized
from tests.checkpoints.row_formats import (
    byte_matrix,
    float8_matrix,
    nvfp4_matrix,
    packed_matrix,
    row_scaled_matrix,
)
from tests.checkpoints.table_formats import awq_matrix, nf4_matrix

# Matrices of the decoder layers that no recipe keeps as floats.
PROJECTIONS = r"^model\.(language_model\.)?layers\..*_proj(_qkv|_z)?\.weight$"
SIDE_FILE = "hf_quant_config.json"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class WrittenFormat:
    """How matrices are stored, and the quantization_config that says so; side is what a file beside it has instead."""

    matrix: Callable[[str, np.ndarray], Matrix]  # from the weight's name
    config: Json | None
    side: Json | None = None
    keeps_codes: bool = False


def compressed(scheme: str, **weights: Any) -> Json:
    """A quantization_config of compressed-tensors with one group."""
    settings = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "dynamic": False, **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": scheme,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": ["lm_head", "re:.*mlp.gate$", "re:.*visual.*"],
        "kv_cache_scheme": None,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**settings, "observer": "minmax", "observer_kwargs": {}, "actorder": None},
                "input_activations": None,
                "output_activations": None,
            }
        },
    }


def auto_round(packing: str, **fields: Any) -> Json:
    """A quantization_config of AutoRound."""
    return {
        "quant_method": "auto-round",
        "packing_format": packing,
        "bits": 4,
        "group_size": 32,
        "sym": True,
        "data_type": "int",
        "iters": 200,
        "autoround_version": "0.12.2",
        **fields,
    }


def write_format(source: Path, folder: Path, name: str, exact: Path | None = None, pattern: str = PROJECTIONS) -> Path:
    """Write `source` (one file, experts one tensor each) in a format, and return `folder`.

    Args:
        name: of FORMATS.
        exact: where the float32 twin goes.
        pattern: which tensors are quantised.
    """
    written = FORMATS[name]

    def quantize(tensor: str, values: np.ndarray) -> Matrix | None:
        return written.matrix(tensor, values) if re.search(pattern, tensor) else None

    write_quantized(source, folder, exact, quantize, written.config)
    if written.side is not None:
        (folder / SIDE_FILE).write_text(json.dumps(written.side), encoding="utf-8")
    return folder


def _of_module(write: Callable[..., Matrix], *arguments: Any, **settings: Any) -> Callable[[str, np.ndarray], Matrix]:
    return lambda name, values: write(name.removesuffix(".weight"), values, *arguments, **settings)


def _permuted(name: str, values: np.ndarray) -> Matrix:
    """GPTQ with groups of input features that do not follow each other."""
    module, columns = name.removesuffix(".weight"), values.shape[1]
    order = np.random.default_rng(columns).permutation(columns)
    matrix = gptq_matrix(module, values[:, order], 4, 32)
    of_feature = np.empty(columns, np.int64)
    of_feature[order] = np.arange(columns) // 32
    return _reordered(matrix, module, order, of_feature)


def _reordered(matrix: Matrix, module: str, order: np.ndarray, of_feature: np.ndarray) -> Matrix:
    """A matrix whose features are in this order, with each in its own place."""
    words = np.frombuffer(matrix.stored[f"{module}.qweight"].content, np.uint32)
    words = words.reshape(matrix.stored[f"{module}.qweight"].shape)
    codes = np.stack([(words >> np.uint32(4 * place)) & np.uint32(15) for place in range(8)], 1)
    in_order = codes.reshape(-1, words.shape[1])
    placed, meaning = np.empty_like(in_order), np.empty_like(matrix.meaning)
    placed[order], meaning[:, order] = in_order, matrix.meaning
    again = placed.reshape(-1, 8, words.shape[1])
    packed = sum((again[:, place] << np.uint32(4 * place) for place in range(8)), np.zeros_like(again[:, 0]))
    stored = {**matrix.stored, f"{module}.qweight": integers(packed), f"{module}.g_idx": integers(of_feature)}
    return Matrix(stored, meaning)


_GPTQ: Json = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "checkpoint_format": "gptq"}
_NVFP4: Json = {"type": "float", "strategy": "tensor_group", "group_size": 16}
_FLOAT8: Json = {"num_bits": 8, "type": "float"}
_NF4: Json = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}

FORMATS: Mapping[str, WrittenFormat] = {
    "w4a16": WrittenFormat(
        _of_module(packed_matrix, 4, 32), compressed("pack-quantized", group_size=32), keeps_codes=True
    ),
    "w4a16-asymmetric": WrittenFormat(
        _of_module(packed_matrix, 4, 32, symmetric=False),
        compressed("pack-quantized", group_size=32, symmetric=False),
        keeps_codes=True,
    ),
    "w8a16": WrittenFormat(
        _of_module(packed_matrix, 8, -1),
        compressed("pack-quantized", num_bits=8, strategy="channel"),
        keeps_codes=True,
    ),
    "w8a16-asymmetric": WrittenFormat(
        _of_module(packed_matrix, 8, 32, symmetric=False),
        compressed("pack-quantized", num_bits=8, group_size=32, symmetric=False),
        keeps_codes=True,
    ),
    "w8a8": WrittenFormat(
        _of_module(byte_matrix), compressed("int-quantized", num_bits=8, strategy="channel"), keeps_codes=True
    ),
    "fp8-block": WrittenFormat(fp8_matrix, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "fp8-dynamic": WrittenFormat(float8_matrix, compressed("float-quantized", **_FLOAT8, strategy="channel")),
    "fp8-tensor": WrittenFormat(
        lambda name, values: float8_matrix(name, values, "matrix"),
        compressed("float-quantized", **_FLOAT8, strategy="tensor"),
    ),
    "fp8-compressed-block": WrittenFormat(
        lambda name, values: float8_matrix(name, values, "block"),
        compressed("float-quantized", **_FLOAT8, strategy="block", block_structure=[128, 128]),
    ),
    "awq": WrittenFormat(
        _of_module(awq_matrix, 32),
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
        keeps_codes=True,
    ),
    "auto-round-awq": WrittenFormat(
        _of_module(awq_matrix, 32, symmetric=True), auto_round("auto_round:auto_awq"), keeps_codes=True
    ),
    "auto-round-gptq": WrittenFormat(
        _of_module(gptq_matrix, 4, 32), auto_round("auto_round:auto_gptq"), keeps_codes=True
    ),
    "nvfp4": WrittenFormat(_of_module(nvfp4_matrix), compressed("nvfp4-pack-quantized", **_NVFP4)),
    "nvfp4-modelopt": WrittenFormat(
        _of_module(nvfp4_matrix, modelopt=True),
        None,
        {
            "producer": {"name": "modelopt", "version": "0.41.0"},
            "quantization": {
                "quant_algo": "NVFP4",
                "kv_cache_quant_algo": "FP8",
                "group_size": 16,
                "exclude_modules": ["lm_head"],
            },
        },
    ),
    "nf4": WrittenFormat(lambda name, values: nf4_matrix(name, values, nested=False), _NF4),
    "nf4-nested": WrittenFormat(nf4_matrix, {**_NF4, "bnb_4bit_use_double_quant": True}),
    "int8": WrittenFormat(
        _of_module(row_scaled_matrix),
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0},
        keeps_codes=True,
    ),
    "gptq": WrittenFormat(_of_module(gptq_matrix, 4, 32), _GPTQ, keeps_codes=True),
    "gptq-desc-act": WrittenFormat(_permuted, {**_GPTQ, "desc_act": True}),
}
