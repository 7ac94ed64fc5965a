"""Quantised checkpoints from a float one, by the formats' definitions: plain numpy, nothing of the exporter.

Each writer makes two checkpoints of one model: the quantised one, and its dequantised float32 weights, which
transformers can load. Codes are only roughly chosen, because only their meaning is tested. FP8 with blocks and GPTQ are
here, the others in row_formats.py and table_formats.py; every_format.py lists all.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from tests.checkpoints.safetensors_files import StoredTensor, encode, write_file

Arrays = dict[str, np.ndarray]  # name -> float32 values

# Tensors that the official FP8 checkpoints do not quantise, and all that are not matrices.
_NOT_FP8 = re.compile(
    r"^lm_head\.|embed_tokens|norm|linear_attn\.(A_log|conv1d|dt_bias|in_proj_a|in_proj_b)|mlp\.gate\.|"
    r"shared_expert_gate|^model\.visual\.|^mtp\.fc\."
)
# Tensors that the official GPTQ checkpoints quantise: the experts, or a dense model's MLP, of the text model.
OFFICIAL_GPTQ = r"^model\.(language_model\.)?layers\.\d+\.mlp\.(experts\.\d+\.)?(gate|up|down)_proj\.weight$"


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor, encoded."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes


@dataclass(frozen=True, slots=True)
class Matrix:
    """The tensors that store a matrix, by full name, and their float32 values."""

    stored: dict[str, Stored]
    meaning: np.ndarray


@dataclass(slots=True)
class _Pair:
    """The two checkpoints that are being made: stored tensors, and their values."""

    stored: dict[str, Stored] = field(default_factory=dict)
    meaning: Arrays = field(default_factory=dict)

    def add(self, name: str, matrix: Matrix) -> None:
        self.stored |= matrix.stored
        self.meaning[name] = matrix.meaning


def write_fp8(
    source: Path,
    folder: Path,
    dequantized: Path,
    *,
    scale_dtype: str = "BF16",
    decay_dtype: str = "F32",
    edit: Callable[[dict[str, Stored]], object] | None = None,
) -> Path:
    """Write `source` (one file, experts one tensor each) as the official FP8 checkpoints are, and return `folder`.

    Args:
        dequantized: where the float32 twin goes.
        scale_dtype: of weight_scale_inv.
        decay_dtype: of A_log and linear_attn.norm, which releases store in F32 or BF16.
        edit: changes the quantised checkpoint's tensors before they are written.
    """

    def quantize(name: str, values: np.ndarray) -> Matrix | None:
        if not name.endswith(".weight") or values.ndim != 2 or _NOT_FP8.search(name):
            return None
        return fp8_matrix(name, values, scale_dtype)

    quantization = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "weight_per_tensor": False,
        "act_per_tensor": False,
        "modules_to_not_convert": ["lm_head", "model.language_model.layers.0.mlp.gate", "model.visual.blocks.0"],
    }
    return write_quantized(source, folder, dequantized, quantize, quantization, decay_dtype=decay_dtype, edit=edit)


def write_gptq(
    source: Path,
    folder: Path,
    dequantized: Path,
    *,
    bits: int = 4,
    group_size: int = 128,
    symmetric: bool = True,
    pattern: str = OFFICIAL_GPTQ,
    scale_dtype: str = "F16",
    with_g_idx: bool = True,
    settings: dict[str, Any] | None = None,
    edit: Callable[[dict[str, Stored]], object] | None = None,
) -> Path:
    """Write `source` (one file, experts one tensor each) as GPTQModel writes format 1, and return `folder`.

    Args:
        dequantized: where the float32 twin goes.
        group_size: input features that share a scale; -1: all of them.
        symmetric: false gives every group a zero point of its own, from 0 to 2 ** bits - 1.
        pattern: which tensors are quantised.
        settings: fields of quantization_config to set.
        edit: changes the quantised checkpoint's tensors before they are written.
    """

    def quantize(name: str, values: np.ndarray) -> Matrix | None:
        if not re.search(pattern, name):
            return None
        matrix = gptq_matrix(name.removesuffix(".weight"), values, bits, group_size, symmetric, scale_dtype)
        if not with_g_idx:
            del matrix.stored[name.removesuffix("weight") + "g_idx"]
        return matrix

    quantization = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "sym": symmetric,
        "desc_act": False,
        "true_sequential": True,
        "static_groups": False,
        "damp_percent": 0.01,
        "checkpoint_format": "gptq",
        "lm_head": False,
        "dynamic": {"lm_head": {}, "model.language_model.embed_tokens": {}, "-:.*attn.*": {}, "-:.*mtp.*": {}},
        **(settings or {}),
    }
    return write_quantized(source, folder, dequantized, quantize, quantization, edit=edit)


def write_quantized(
    source: Path,
    folder: Path,
    dequantized: Path | None,
    quantize: Callable[[str, np.ndarray], Matrix | None],
    quantization: dict[str, Any] | None,
    *,
    decay_dtype: str = "F32",
    edit: Callable[[dict[str, Stored]], object] | None = None,
) -> Path:
    """Write `source` (one file) with some of its tensors quantised, and return `folder`.

    Args:
        dequantized: where the float32 twin goes; None: nowhere.
        quantize: a tensor's name and values -> what stores it; None: BF16.
        quantization: of config.json; None: there is none.
        decay_dtype: of A_log and linear_attn.norm.
        edit: changes the quantised checkpoint's tensors before they are written.
    """
    pair = _Pair()
    for name, values in _load(source).items():
        matrix = quantize(name, values)
        if matrix is not None:
            pair.add(name, matrix)
            continue
        is_decay = name.endswith(("A_log", "linear_attn.norm.weight"))
        _keep(pair, name, values, decay_dtype if is_decay else "BF16")
    if edit is not None:
        edit(pair.stored)
    _write(source, folder, pair.stored)
    if dequantized is not None:
        exact = {name: Stored("F32", values.shape, encode(values, "F32")) for name, values in pair.meaning.items()}
        _write(source, dequantized, exact)
    if quantization is not None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = quantization
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def fp8_matrix(name: str, values: np.ndarray, scale_dtype: str = "BF16") -> Matrix:
    """`name` and its weight_scale_inv."""
    rows, columns = values.shape
    scales = np.zeros((-(-rows // 128), -(-columns // 128)), np.float32)
    codes = np.zeros(values.shape, np.uint8)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = np.s_[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)]
            scales[i, j] = rounded(np.abs(values[block]).max() / 448.0, scale_dtype)
            codes[block] = nearest_e4m3(values[block] / scales[i, j])
    stored = {
        name: Stored("F8_E4M3", values.shape, codes.tobytes()),
        f"{name}_scale_inv": Stored(scale_dtype, scales.shape, encode(scales, scale_dtype)),
    }
    return Matrix(stored, E4M3_VALUES[codes] * scales.repeat(128, 0)[:rows].repeat(128, 1)[:, :columns])


def gptq_matrix(
    module: str,
    values: np.ndarray,
    bits: int = 4,
    group_size: int = 128,
    symmetric: bool = True,
    scale_dtype: str = "F16",
    least_zero_point: int = 0,
) -> Matrix:
    """The module's qweight, qzeros, scales and g_idx."""
    group = values.shape[1] if group_size == -1 else group_size
    codes, scales, zero_points = grouped_codes(values, bits, group, symmetric, scale_dtype, least_zero_point)
    g_idx = np.arange(values.shape[1]) // group
    # Format 1 stores zero points minus one; the ones are subtracted from whole words.
    words = packed(zero_points, bits) - np.uint32(sum(1 << shift for shift in range(0, 32, bits)))
    stored = {
        f"{module}.qweight": integers(packed(codes.T, bits, axis=0)),
        f"{module}.qzeros": integers(words),
        f"{module}.scales": Stored(scale_dtype, scales.shape, encode(scales, scale_dtype)),
        f"{module}.g_idx": integers(g_idx),
    }
    centred = codes.astype(np.float32) - zero_points.T[:, g_idx].astype(np.float32)
    return Matrix(stored, centred * scales.T[:, g_idx])


def integers(values: np.ndarray) -> Stored:
    """An I32 tensor."""
    return Stored("I32", values.shape, np.ascontiguousarray(values).astype(np.uint32).tobytes())


def write_tensors(path: Path, tensors: dict[str, Stored]) -> None:
    """One safetensors file."""
    write_file(
        path,
        [
            StoredTensor(name, tensor.dtype, tensor.shape, partial(iter, (tensor.content,)))
            for name, tensor in tensors.items()
        ],
    )


def _e4m3_values() -> np.ndarray:
    """The 256 values of F8_E4M3: sign, four bits of exponent (bias 7), three of mantissa; all ones is NaN."""
    codes = np.arange(256)
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, mantissa = (codes >> 3) & 0xF, (codes & 7) / 8.0
    values = np.where(exponent == 0, 2.0**-6 * mantissa, 2.0 ** (exponent - 7.0) * (1.0 + mantissa))
    return np.where(codes & 0x7F == 0x7F, np.nan, sign * values).astype(np.float32)


E4M3_VALUES = _e4m3_values()


def nearest_e4m3(values: np.ndarray) -> np.ndarray:
    positive = E4M3_VALUES[:127]  # ascending, 448 last
    middles = (positive[1:] + positive[:-1]) / 2
    magnitudes = np.searchsorted(middles, np.abs(values)).astype(np.uint8)
    codes: np.ndarray = magnitudes | np.where(values < 0, np.uint8(0x80), np.uint8(0))
    return codes


def grouped_codes(
    values: np.ndarray, bits: int, group: int, symmetric: bool, scale_dtype: str, least_zero_point: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [N, K], scales [groups, N], zero points [groups, N]."""
    rows, columns = values.shape
    num_groups, top = -(-columns // group), 2**bits - 1
    codes = np.zeros(values.shape, np.uint32)
    scales = np.zeros((num_groups, rows), np.float32)
    zero_points = np.full((num_groups, rows), 2 ** (bits - 1), np.uint32)
    for index in range(num_groups):
        block = values[:, index * group : (index + 1) * group]
        if symmetric:
            scales[index] = rounded(2 * np.abs(block).max(1) / top, scale_dtype)
        else:
            low, high = np.minimum(block.min(1), 0), np.maximum(block.max(1), 0)
            scales[index] = rounded((high - low) / top, scale_dtype)
            # Spread over all values of the format: real ones lie in the middle, where a mistake of one bit hides.
            spread = (np.arange(rows) + index) % 5 * (top // 2) - top
            zero_points[index] = np.clip(np.rint(-low / scales[index]) + spread, least_zero_point, top)
        steps = np.rint(block / scales[index][:, None]) + zero_points[index][:, None]
        codes[:, index * group : (index + 1) * group] = np.clip(steps, 0, top)
    return codes, scales, zero_points


def packed(values: np.ndarray, bits: int, axis: int = 1) -> np.ndarray:
    """Words of 32 / bits values that follow each other along an axis, the first in the lowest bits."""
    if axis == 0:
        return packed(values.T, bits).T
    per_word = 32 // bits
    words = np.zeros((values.shape[0], values.shape[1] // per_word), np.uint32)
    for index in range(per_word):
        words |= values[:, index::per_word].astype(np.uint32) << np.uint32(bits * index)
    return words


def _keep(pair: _Pair, name: str, values: np.ndarray, dtype: str) -> None:
    pair.stored[name] = Stored(dtype, values.shape, encode(values, dtype))
    pair.meaning[name] = rounded(values, dtype)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as a stored dtype keeps them."""
    content = encode(values, dtype)
    if dtype == "BF16":
        return (np.frombuffer(content, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(np.shape(values))
    stored = np.frombuffer(content, np.float32 if dtype == "F32" else np.float16)
    return stored.astype(np.float32).reshape(np.shape(values))


def _load(source: Path) -> Arrays:
    return {name: tensor.float().numpy() for name, tensor in load_file(source / "model.safetensors").items()}


def _write(source: Path, folder: Path, tensors: dict[str, Stored]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    write_tensors(folder / "model.safetensors", tensors)
