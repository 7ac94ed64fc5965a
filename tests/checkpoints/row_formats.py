"""Matrices as compressed-tensors, ModelOpt and bitsandbytes (8 bits) store them, row by row: plain numpy."""

from __future__ import annotations

import numpy as np

from tests.checkpoints.quantized_formats import (
    E4M3_VALUES,
    Matrix,
    Stored,
    grouped_codes,
    integers,
    nearest_e4m3,
    packed,
    rounded,
)
from tests.checkpoints.safetensors_files import encode

E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
FP4_GROUP = 16


def packed_matrix(
    module: str,
    values: np.ndarray,
    bits: int = 4,
    group_size: int = 128,
    symmetric: bool = True,
    scale_dtype: str = "BF16",
    groups: np.ndarray | None = None,
) -> Matrix:
    """compressed-tensors, pack-quantized: weight_packed, weight_scale, weight_shape and weight_zero_point.

    group_size -1 is a whole row. groups are those of the input features, where they do not follow each other.
    """
    codes, scales, zero_points, meaning = _quantized(values, bits, group_size, symmetric, scale_dtype, groups)
    stored = {
        f"{module}.weight_packed": integers(_padded(codes, bits)),
        f"{module}.weight_scale": Stored(scale_dtype, scales.shape, encode(scales, scale_dtype)),
        f"{module}.weight_shape": Stored("I64", (2,), np.array(values.shape, np.int64).tobytes()),
    }
    if not symmetric:
        stored[f"{module}.weight_zero_point"] = integers(_padded(zero_points.T, bits).T)
    if groups is not None:
        stored[f"{module}.weight_g_idx"] = integers(groups)
    return Matrix(stored, meaning)


def byte_matrix(module: str, values: np.ndarray, group_size: int = -1, symmetric: bool = True) -> Matrix:
    """compressed-tensors, int-quantized: weight, weight_scale and weight_zero_point."""
    codes, scales, zero_points, meaning = _quantized(values, 8, group_size, symmetric, "BF16", None)
    stored = {
        f"{module}.weight": _signed(codes),
        f"{module}.weight_scale": Stored("BF16", scales.shape, encode(scales, "BF16")),
    }
    if not symmetric:
        stored[f"{module}.weight_zero_point"] = _signed(zero_points)
    return Matrix(stored, meaning)


def row_scaled_matrix(module: str, values: np.ndarray) -> Matrix:
    """bitsandbytes, 8 bits: weight, SCB and weight_format."""
    largest = np.abs(values).max(1).astype(np.float32)
    codes = np.clip(np.rint(values / largest[:, None] * 127), -127, 127).astype(np.int8)
    stored = {
        f"{module}.weight": Stored("I8", codes.shape, codes.tobytes()),
        f"{module}.SCB": Stored("F32", largest.shape, encode(largest, "F32")),
        f"{module}.weight_format": Stored("U8", (), bytes(1)),
    }
    return Matrix(stored, codes.astype(np.float32) * (largest / np.float32(127))[:, None])


def float8_matrix(name: str, values: np.ndarray, per: str = "row", scale_dtype: str = "BF16") -> Matrix:
    """`name` and its name_scale: one for a "row", a "matrix" (ModelOpt: in no axes) or a "block" of 128 x 128.

    values may have three axes, of which the first are fused experts.
    """
    *outer, rows, columns = values.shape
    if per == "block":
        padded = np.pad(values, [(0, 0)] * len(outer) + [(0, -rows % 128), (0, -columns % 128)])
        blocks = padded.reshape(*outer, padded.shape[-2] // 128, 128, padded.shape[-1] // 128, 128)
        largest = np.abs(blocks).max((-3, -1))
    else:
        largest = np.abs(values).max(-1 if per == "row" else (-2, -1), keepdims=per == "row")
    scales = rounded(np.maximum(largest, 1e-12) / 448, scale_dtype)
    spread = scales
    if per == "block":
        spread = scales.repeat(128, -2)[..., :rows, :].repeat(128, -1)[..., :columns]
    elif per == "matrix":
        spread = scales.reshape(*outer, 1, 1)
    codes = nearest_e4m3(values / spread)
    stored = {
        name: Stored("F8_E4M3", values.shape, codes.tobytes()),
        f"{name}_scale": Stored(scale_dtype, scales.shape, encode(scales, scale_dtype)),
    }
    return Matrix(stored, E4M3_VALUES[codes] * spread)


def nvfp4_matrix(module: str, values: np.ndarray, *, modelopt: bool = False) -> Matrix:
    """The module's weight_packed, weight_scale and weight_global_scale, or ModelOpt's weight and weight_scale_2."""
    rows, columns = values.shape
    groups = values.reshape(rows, columns // FP4_GROUP, FP4_GROUP)
    # The largest scale of a group becomes 448, the largest value of its type.
    whole = np.float32(448 * 6 / np.abs(values).max())
    if modelopt:
        whole = np.float32(1) / whole
    scale_codes = nearest_e4m3(np.abs(groups).max(-1) / 6 * (1 / whole if modelopt else whole))
    scales = E4M3_VALUES[scale_codes] * whole if modelopt else E4M3_VALUES[scale_codes] / whole
    exact = groups / np.where(scales == 0, 1, scales)[..., None]
    places = np.searchsorted((E2M1[1:] + E2M1[:-1]) / 2, np.abs(exact)).astype(np.uint8)
    codes = (places | np.where(exact < 0, np.uint8(8), np.uint8(0))).reshape(rows, columns)
    octets = codes[:, 0::2] | (codes[:, 1::2] << 4)
    names = ("weight", "weight_scale_2") if modelopt else ("weight_packed", "weight_global_scale")
    stored = {
        f"{module}.{names[0]}": Stored("U8", octets.shape, octets.tobytes()),
        f"{module}.weight_scale": Stored("F8_E4M3", scale_codes.shape, scale_codes.tobytes()),
        f"{module}.{names[1]}": Stored("F32", () if modelopt else (1,), whole.tobytes()),
        f"{module}.input_{'scale' if modelopt else 'global_scale'}": Stored("F32", (1,), np.float32(2).tobytes()),
    }
    signed = np.concatenate([E2M1, -E2M1])[codes].reshape(groups.shape)
    return Matrix(stored, (signed * scales[..., None]).reshape(rows, columns))


def _quantized(
    values: np.ndarray, bits: int, group_size: int, symmetric: bool, scale_dtype: str, groups: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes [N, K], scales and zero points [N, groups], and the values that these stand for."""
    columns = values.shape[1]
    group = columns if group_size == -1 else group_size
    of_feature = np.arange(columns) // group if groups is None else groups
    # The codes of permuted features are chosen where they lie in order.
    order = np.argsort(of_feature, kind="stable")
    in_order, scales, zero_points = grouped_codes(values[:, order], bits, group, symmetric, scale_dtype, 0)
    codes = np.empty_like(in_order)
    codes[:, order] = in_order
    scales, zero_points = scales.T, zero_points.T
    centred = codes.astype(np.float32) - zero_points[:, of_feature].astype(np.float32)
    return codes, scales, zero_points, centred * scales[:, of_feature]


def _padded(codes: np.ndarray, bits: int) -> np.ndarray:
    """Words of codes that follow each other along the second axis; the last word may have room."""
    return packed(np.pad(codes, ((0, 0), (0, -codes.shape[1] % (32 // bits)))), bits)


def _signed(codes: np.ndarray) -> Stored:
    return Stored("I8", codes.shape, (codes.astype(np.int16) - 128).astype(np.int8).tobytes())
