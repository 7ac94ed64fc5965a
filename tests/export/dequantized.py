"""A checkpoint of quantised and dequantised weights, with which a quantised artifact is compared."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from qwonnx.export.quantization.quantize import quantize_blocks
from qwonnx.export.quantization.recipe import Recipe


def write_dequantized(checkpoint: Path, folder: Path, weights: str) -> Path:
    """Copy a one-file checkpoint with fused experts into `folder`, in float32, each weight as a preset rounds it.

    It rounds the checkpoint's own tensors by the recipe, without the export's code for reading and writing.
    """
    recipe = Recipe.choose(None, weights, None)
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    tensors = {}
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        ours = re.sub(r"^model\.(language_model\.)?", "", name)
        value = tensor.float()
        if not name.startswith(("model.visual.", "mtp.")) and not ours.endswith("A_log"):
            storage = recipe.storage(ours, tuple(value.shape))
            if storage.is_quantized:
                value = _round(value, storage.bits, storage.block_size)
        tensors[name] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _round(value: torch.Tensor, bits: int, block_size: int) -> torch.Tensor:
    rows = value.reshape(-1, value.shape[-1])
    codes = torch.empty(rows.shape[0], rows.shape[1] * bits // 8, dtype=torch.uint8)
    scales = torch.empty(rows.shape[0], rows.shape[1] // block_size)
    quantize_blocks(rows, bits, codes, scales)
    return dequantize_blocks(codes, scales, bits).reshape(value.shape)


def dequantize_blocks(codes: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """The weights that codes and scales stand for.

    Args:
        codes: uint8 [..., in_features * bits / 8].
        scales: float32 [..., in_features / block_size].
        bits: 8 or 4.

    Returns:
        float32 [..., in_features].
    """
    unpacked = codes if bits == 8 else torch.stack((codes & 0xF, codes >> 4), -1).flatten(-2)
    values = unpacked.float() - (128 if bits == 8 else 8)
    blocks = values.view(*scales.shape, -1) * scales.unsqueeze(-1)
    return blocks.flatten(-2)
