"""How the blocks of GGUF's types of tensors are decoded.

A block has 32 or 256 values. d and m are float16: a block's scale and its offset. In the K types a
block of 256 has parts of 16 or 32 values, whose scales (and offsets) are integers of 4 or 6 bits, times d (and m).

    type     values  bytes  value                        stored
    Q4_0     32      18     d * (q - 8)                  d, 4 bits of values i and i + 16 in a byte
    Q4_1     32      20     d * q + m                    d, m, 4 bits
    Q5_0     32      22     d * (q - 16)                 d, the fifth bits, 4 bits
    Q5_1     32      24     d * q + m                    d, m, the fifth bits, 4 bits
    Q8_0     32      34     d * q                        d, int8
    Q2_K     256     84     d * s * q - m * o            s and o in a byte, 2 bits, d, m
    Q3_K     256     110    d * (s - 32) * (q - 4)       the third bits, 2 bits, s, d
    Q4_K     256     144    d * s * q - m * o            d, m, s and o, 4 bits
    Q5_K     256     176    d * s * q - m * o            d, m, s and o, the fifth bits, 4 bits
    Q6_K     256     210    d * s * (q - 32)             4 bits, 2 bits, s as int8, d

Source: block_* of ggml-common.h and the reference decoders of ggml-quants.c in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def _float32(blocks: Bytes) -> Floats:
    return blocks.view("<f4")


def _float16(blocks: Bytes) -> Floats:
    return blocks.view("<f2").astype(np.float32)


def _bfloat16(blocks: Bytes) -> Floats:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _half(blocks: Bytes, at: int) -> Floats:
    """A float16 of each block, [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(stored: Bytes) -> Bytes:
    """[..., k] bytes -> [..., 2 * k]: all low halves, then all high ones."""
    return np.concatenate([stored & 15, stored >> 4], axis=-1)


def _fields(stored: Bytes, num_bits: int) -> Bytes:
    """[..., k] bytes -> [..., 8 // num_bits, k]: the first field of every byte, then the second, ..."""
    shifts = np.arange(0, 8, num_bits, dtype=np.uint8)[:, None]
    return (stored[..., None, :] >> shifts) & np.uint8((1 << num_bits) - 1)


def _fifth_bits(stored: Bytes) -> Bytes:
    """[n, 4] bytes -> [n, 32]: bit i of a little-endian word, as 16 or 0."""
    return np.unpackbits(stored, axis=-1, bitorder="little") << np.uint8(4)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks, 0) * (codes.astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks, 0) * codes.astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)


def _scaled(codes: Bytes, scales: Floats, offsets: Floats | None = None) -> Floats:
    """Codes [n, parts, values] times scales [n, parts], minus offsets, as [n, parts * values]."""
    values = codes.astype(np.float32)
    values *= scales[..., None]
    if offsets is not None:
        values -= offsets[..., None]
    return values.reshape(len(codes), -1)


def _q2_k(blocks: Bytes) -> Floats:
    both = blocks[:, :16]
    scales = _half(blocks, 80) * (both & 15).astype(np.float32)
    offsets = _half(blocks, 82) * (both >> 4).astype(np.float32)
    codes = _fields(blocks[:, 16:80].reshape(-1, 2, 32), 2)  # [n, 2, 4, 32]
    return _scaled(codes.reshape(-1, 16, 16), scales, offsets)


def _q3_k(blocks: Bytes) -> Floats:
    packed = blocks[:, 96:108]
    # 16 scales: 4 low bits of the first 8 bytes' halves, 2 high bits from the last 4 bytes.
    scales = _nibbles(packed[:, :8]) | (_fields(packed[:, 8:], 2).reshape(-1, 16) << np.uint8(4))
    step = _half(blocks, 108) * (scales.astype(np.float32) - 32)
    low = _fields(blocks[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 256)
    high = _fields(blocks[:, :32], 1).reshape(-1, 256)  # [n, 8, 32]
    codes = (low | (high << np.uint8(2))).astype(np.float32) - 4
    return (codes.reshape(-1, 16, 16) * step[..., None]).reshape(-1, 256)


def _six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """[n, 12] bytes of Q4_K and Q5_K -> eight scales and eight offsets, of 6 bits each."""
    first, second, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6 << np.uint8(4))], axis=-1)
    offsets = np.concatenate([second & 63, (rest >> 4) | (second >> 6 << np.uint8(4))], axis=-1)
    return scales, offsets


def _steps(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scales and offsets of the eight parts of Q4_K and Q5_K, [n, 8] each."""
    scales, offsets = _six_bits(blocks[:, 4:16])
    return _half(blocks, 0) * scales.astype(np.float32), _half(blocks, 2) * offsets.astype(np.float32)


def _q4_k(blocks: Bytes) -> Floats:
    codes = _fields(blocks[:, 16:].reshape(-1, 4, 32), 4)  # [n, 4, 2, 32]
    return _scaled(codes.reshape(-1, 8, 32), *_steps(blocks))


def _q5_k(blocks: Bytes) -> Floats:
    low = _fields(blocks[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    high = _fields(blocks[:, 16:48], 1)  # [n, 8, 32]
    return _scaled(low | (high << np.uint8(4)), *_steps(blocks))


def _q6_k(blocks: Bytes) -> Floats:
    low = _fields(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 2, 128)
    high = _fields(blocks[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 2, 128)
    scales = _half(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    codes = (low | (high << np.uint8(4))).astype(np.float32) - 32
    return (codes.reshape(-1, 16, 16) * scales[..., None]).reshape(-1, 256)


# By the name of a type: [n, num_bytes] -> [n, num_values].
DECODERS: Mapping[str, Callable[[Bytes], Floats]] = {
    "F32": _float32,
    "F16": _float16,
    "BF16": _bfloat16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
