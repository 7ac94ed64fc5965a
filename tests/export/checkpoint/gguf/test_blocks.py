"""Blocks are decoded as llama.cpp's own Python package decodes them, to the bit."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from qwonnx.export.checkpoint.gguf.block_types import BLOCK_TYPES, UNREAD_TYPES
from qwonnx.export.checkpoint.gguf.blocks import DECODERS

pytestmark = pytest.mark.fast

BLOCKS = {block.name: block for block in BLOCK_TYPES.values()}
# The places of float16 in a block.
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
# Of the float32 values that gguf.quants.dequantize of gguf 0.19.0 makes of blocks(NAME).
SHA256 = {
    "Q4_0": "81bd1206205ad158c320d22a2eb2b1c7359fbeac5c94bd4c68853bd714f62af2",
    "Q4_1": "93d3dd236afe78139e3407066079cc8fc8e806ec426fab2f18c667ffcc82c0ce",
    "Q5_0": "d94993202f18b2fad9e5d3d399607ad40236ff4e4d1faf753ce69e7947a33869",
    "Q5_1": "a3347e290dbb7d099aee8cbc80b16f123823f24f271d7fc831afec44e447e1cc",
    "Q8_0": "0aa7442e2ff3632f1dafeb3b1b90c778886a4f5b6e5a7ad4c847461ac6c08ddd",
    "Q2_K": "ca55361c28ae1d60a1bddd5ba67c9244162c3cf7f727ed55c706c976db171031",
    "Q3_K": "78e574168c9cf8fd021283d855d5854c72175510739d471f5490c3e7ca425e24",
    "Q4_K": "c498a22da89e6a6088a73140683176859f47070017f610c6b6fc5f4f44172b72",
    "Q5_K": "272d4c64e48e8a5d817209a46e065b6bc7f8299351464d7f9c3ebf1d00536630",
    "Q6_K": "73cdf743d5ae3745411b0f80726d4322c1922edbeab8340ebfb84a97755efd31",
}


def blocks(name: str) -> np.ndarray:
    """64 blocks of any bytes, whose scales are finite."""
    size = BLOCKS[name].num_bytes
    made = np.frombuffer(hashlib.shake_128(name.encode()).digest(64 * size), np.uint8).reshape(64, size).copy()
    for place in HALVES[name]:
        made[:, place + 1] &= 0xBB  # the exponent is not all ones
    return made


@pytest.mark.parametrize("name", SHA256)
def test_blocks_of_codes_have_the_values_of_the_gguf_package(name: str) -> None:
    values = DECODERS[name](blocks(name))
    assert values.shape == (64, BLOCKS[name].num_values)
    assert values.dtype == np.float32
    assert hashlib.sha256((values + np.float32(0)).tobytes()).hexdigest() == SHA256[name]


def test_every_type_of_codes_is_compared() -> None:
    assert SHA256.keys() == HALVES.keys() == {block.name for block in BLOCKS.values() if block.float_dtype is None}
    assert not BLOCK_TYPES.keys() & UNREAD_TYPES.keys()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_floats_are_widened(name: str) -> None:
    exact = np.array([[0.5], [-2.0], [2.0**15]], np.float32)
    bits: dict[str, np.ndarray] = {
        "F32": exact,
        "F16": exact.astype(np.float16),
        "BF16": (exact.view(np.uint32) >> 16).astype(np.uint16),
    }
    assert np.array_equal(DECODERS[name](bits[name].view(np.uint8)), exact)
