"""Matrices as AWQ (gemm) and bitsandbytes (4 bits) store them: plain numpy."""

from __future__ import annotations

import json

import numpy as np

from tests.checkpoints.quantized_formats import Matrix, Stored, grouped_codes, integers
from tests.checkpoints.safetensors_files import encode

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # output features of a word, from its lowest bits
# Quantiles of the normal distribution, as bitsandbytes has them.
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
_BLOCK, _NESTED_BLOCK = 64, 256


def awq_matrix(module: str, values: np.ndarray, group_size: int = 128, symmetric: bool = False) -> Matrix:
    """The module's qweight, qzeros and scales; group_size -1 is a whole row."""
    group = values.shape[1] if group_size == -1 else group_size
    codes, scales, zero_points = grouped_codes(values, 4, group, symmetric, "F16", 0)
    of_feature = np.arange(values.shape[1]) // group
    stored = {
        f"{module}.qweight": integers(_awq_words(codes.T)),
        f"{module}.qzeros": integers(_awq_words(zero_points)),
        f"{module}.scales": Stored("F16", scales.shape, encode(scales, "F16")),
    }
    centred = codes.astype(np.float32) - zero_points.T[:, of_feature].astype(np.float32)
    return Matrix(stored, centred * scales.T[:, of_feature])


def nf4_matrix(name: str, values: np.ndarray, *, nested: bool = True, storage: str = "U8") -> Matrix:
    """`name` and its absmax, quant_map and quant_state; nested: with a quantised absmax.

    storage is the dtype of the codes' tensor, another view of the same bytes.
    """
    flat = values.reshape(-1)
    padded = np.pad(flat, (0, -flat.size % _BLOCK)).reshape(-1, _BLOCK)
    absmax = np.abs(padded).max(1).astype(np.float32)
    state = {"quant_type": "nf4", "blocksize": _BLOCK, "dtype": "bfloat16", "shape": list(values.shape)}
    scales: dict[str, Stored] = {f"{name}.absmax": _floats(absmax)}
    if nested:
        offset = np.float32(absmax.mean())
        # A table of our own: readers must use the stored one.
        table = np.linspace(-1, 1, 256).astype(np.float32)
        blocks = np.pad(absmax - offset, (0, -absmax.size % _NESTED_BLOCK)).reshape(-1, _NESTED_BLOCK)
        outer = np.abs(blocks).max(1).astype(np.float32)
        places = np.abs(blocks[..., None] / outer[:, None, None] - table).argmin(-1).astype(np.uint8)
        absmax = ((table[places] * outer[:, None]).reshape(-1)[: absmax.size] + offset).astype(np.float32)
        codes = places.reshape(-1)[: absmax.size]
        scales = {
            f"{name}.absmax": Stored("U8", codes.shape, codes.tobytes()),
            f"{name}.nested_absmax": _floats(outer),
            f"{name}.nested_quant_map": _floats(table),
        }
        state |= {"nested_blocksize": _NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": float(offset)}
    places = np.searchsorted((NF4[1:] + NF4[:-1]) / 2, padded / absmax[:, None]).astype(np.uint8).reshape(-1)
    meaning = (NF4[places].reshape(-1, _BLOCK) * absmax[:, None]).reshape(-1)[: flat.size].reshape(values.shape)
    places = places[: flat.size + flat.size % 2]
    octets = (places[0::2] << 4) | places[1::2]
    item = {"U8": 1, "BF16": 2}[storage]
    text = json.dumps(state).encode()
    stored = {
        name: Stored(storage, (octets.size // item, 1), octets.tobytes()),
        **scales,
        f"{name}.quant_map": _floats(NF4),
        f"{name}.quant_state.bitsandbytes__nf4": Stored("U8", (len(text),), text),
    }
    return Matrix(stored, meaning)


def _awq_words(codes: np.ndarray) -> np.ndarray:
    """Words of eight codes along the second axis, in AWQ's order."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for place, column in enumerate(_AWQ_ORDER):
        words |= codes[:, column::8].astype(np.uint32) << np.uint32(4 * place)
    return words


def _floats(values: np.ndarray) -> Stored:
    return Stored("F32", values.shape, encode(values, "F32"))
