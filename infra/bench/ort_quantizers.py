"""ONNX Runtime's own weight quantisers, as functions from a float weight to its dequantised codes.

Each runs onnxruntime's own code (`onnxruntime.quantization`) on one weight, without a graph. Bits are those that
MatMulNBits stores: codes, a float32 scale for each block and, if the algorithm has zero points, one for each block,
with the bits of a code or in float32 (HQQ).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
    HQQWeightOnlyQuantConfig,
    HQQWeightOnlyQuantizer,
)
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

# The quantisers' modules configure the root logger as they are imported, at a level that reports every weight.
logging.getLogger().setLevel(logging.WARNING)

ZERO_POINT_BITS = {"rtn symmetric": 0, "rtn": None, "k-quant": None, "hqq": 32}  # None: as many as a code


@dataclass(frozen=True, slots=True)
class OrtQuantizer:
    """One of ONNX Runtime's algorithms: "rtn symmetric", "rtn" (with zero points), "k-quant" or "hqq"."""

    algorithm: str

    def bits_per_weight(self, bits: int, block_size: int) -> float:
        """Bits of code, scale and zero point."""
        zero_point = ZERO_POINT_BITS[self.algorithm]
        return bits + (32 + (bits if zero_point is None else zero_point)) / block_size

    def round_trip(self, weight: torch.Tensor, bits: int, block_size: int) -> torch.Tensor:
        """float32 [rows, in_features], quantised and dequantised."""
        if self.algorithm == "hqq":
            return _hqq(weight, bits, block_size)
        if self.algorithm == "k-quant":
            return _k_quant(weight, bits, block_size)
        return _rtn(weight, bits, block_size, symmetric=self.algorithm == "rtn symmetric")


def _rtn(weight: torch.Tensor, bits: int, block_size: int, *, symmetric: bool) -> torch.Tensor:
    quantizer = DefaultWeightOnlyQuantizer(
        DefaultWeightOnlyQuantConfig(block_size=block_size, is_symmetric=symmetric, bits=bits)
    )
    codes, scales, zero_points = quantizer.qbits_block_quant(np.ascontiguousarray(weight.numpy().T))
    levels = _unpacked(codes, bits).astype(np.float32)
    # Symmetric quantisation has no zero points, and MatMulNBits then uses the middle of the range.
    middles = np.float32(1 << (bits - 1)) if symmetric else _unpacked(zero_points, bits)[:, : scales.shape[1], None]
    return torch.from_numpy(((levels - middles) * scales[..., None]).reshape(weight.shape).astype(np.float32))


def _k_quant(weight: torch.Tensor, bits: int, block_size: int) -> torch.Tensor:
    levels, scales, zero_points = quant_tensor_k_quant_cpu(weight.numpy(), bits, block_size)
    values = (levels - zero_points.astype(np.float64)) * scales.astype(np.float32)
    return torch.from_numpy(values.astype(np.float32)).view(weight.shape)


def _hqq(weight: torch.Tensor, bits: int, block_size: int) -> torch.Tensor:
    quantizer = HQQWeightOnlyQuantizer(HQQWeightOnlyQuantConfig(block_size=block_size, bits=bits))
    levels, scales, zeros = quantizer.quantize_internal(weight, bits=bits, group_size=block_size)
    blocks = levels.view(*scales.shape, -1).float()
    restored: torch.Tensor = ((blocks - zeros[..., None]) * scales[..., None]).view(weight.shape)
    return restored


def _unpacked(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Codes along the last axis, the even one in the low nibble."""
    if bits == 8:
        return packed
    return np.stack((packed & 0xF, packed >> 4), -1).reshape(*packed.shape[:-1], -1)
