"""The vision tower for training: pictures of one size at a time, each one frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 16
MERGE = 2


def patches(picture: np.ndarray) -> np.ndarray:
    """uint8 [height, width, 3] as the tower's input: float32 [h * w, 3 * 16 * 16] from -1 to 1.

    Patches come in blocks of two by two, which become one token; a patch's values are (channel, row, column). Other
    implementations repeat a still picture as two frames: this tower adds the weights of both frames instead.
    """
    height, width, channels = picture.shape
    rows, columns = height // PATCH // MERGE, width // PATCH // MERGE
    values = picture.astype(np.float32) / 127.5 - 1
    blocks = values.reshape(rows, MERGE, PATCH, columns, MERGE, PATCH, channels).transpose(0, 3, 1, 4, 6, 2, 5)
    return blocks.reshape(rows * columns * MERGE**2, -1)


class _Linear2(nn.Module):
    """Two linear layers: fields of the block's mlp and of the merger."""

    def __init__(self, size: int, inner: int, out: int) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(size, inner)
        self.linear_fc2 = nn.Linear(inner, out)


class _VisionAttention(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        count, length, hidden = x.shape
        query, key, value = self.qkv(x).view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(_turned(query, cos, sin), _turned(key, cos, sin), value)
        result: Tensor = self.proj(read.transpose(1, 2).reshape(count, length, hidden))
        return result


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


class _VisionBlock(nn.Module):
    def __init__(self, vision: Mapping[str, Any]) -> None:
        super().__init__()
        hidden = vision["hidden_size"]
        self.norm1 = nn.LayerNorm(hidden, eps=1e-6)
        self.norm2 = nn.LayerNorm(hidden, eps=1e-6)
        self.attn = _VisionAttention(hidden, vision["num_heads"])
        self.mlp = _Linear2(hidden, vision["intermediate_size"], hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        inner = F.gelu(self.mlp.linear_fc1(self.norm2(x)), approximate="tanh")
        result: Tensor = x + self.mlp.linear_fc2(inner)
        return result


class _PatchEmbed(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Module()
        self.proj.weight = nn.Parameter(torch.empty(hidden, 3, 2, PATCH, PATCH))
        self.proj.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.proj.weight, self.proj.bias
        assert isinstance(weight, Tensor)
        assert isinstance(bias, Tensor)
        return F.linear(x, weight.sum(2).flatten(1), bias)  # of both frames


class _Merger(_Linear2):
    def __init__(self, hidden: int, out: int) -> None:
        super().__init__(hidden * MERGE**2, hidden * MERGE**2, out)
        self.norm = nn.LayerNorm(hidden, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        merged = self.norm(x).view(*x.shape[:-2], -1, x.shape[-1] * MERGE**2)
        result: Tensor = self.linear_fc2(F.gelu(self.linear_fc1(merged)))
        return result


class VisionTower(nn.Module):
    """Patches -> the embeddings of a picture's tokens."""

    def __init__(self, vision: Mapping[str, Any]) -> None:
        super().__init__()
        hidden = vision["hidden_size"]
        self.patch_embed = _PatchEmbed(hidden)
        self.pos_embed = nn.Embedding(vision["num_position_embeddings"], hidden)
        self.blocks = nn.ModuleList([_VisionBlock(vision) for _ in range(vision["depth"])])
        self.merger = _Merger(hidden, vision["out_hidden_size"])
        self._side = int(vision["num_position_embeddings"] ** 0.5)
        self._head_dim = hidden // vision["num_heads"]

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """[pictures, h * w / 4, out] from patches [pictures, h * w, 768]; h and w count patches."""
        rows, columns = (grid.to(x.device) for grid in _grid(height, width))
        frequency = 10000.0 ** (-torch.arange(0, self._head_dim // 2, 2, device=x.device) / (self._head_dim // 2))
        angle = torch.cat([rows[:, None] * frequency, columns[:, None] * frequency], -1)
        angle = torch.cat([angle, angle], -1)
        cos, sin = angle.cos(), angle.sin()
        x = self.patch_embed(x) + self._positions(rows, columns, height, width)
        for block in self.blocks:
            x = block(x, cos, sin)
        result: Tensor = self.merger(x)
        return result

    def _positions(self, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
        """The learnt square grid at the patches' places: bilinear, corners aligned."""
        result: Tensor = torch.zeros((), device=rows.device)
        y, x = rows * (self._side - 1) / max(height - 1, 1), columns * (self._side - 1) / max(width - 1, 1)
        for row, row_weight in _neighbours(y, self._side):
            for column, column_weight in _neighbours(x, self._side):
                weight = (row_weight * column_weight).unsqueeze(-1)
                result = result + self.pos_embed(row * self._side + column) * weight
        return result


def _neighbours(place: Tensor, side: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    below = place.floor().clamp(max=side - 1)
    part = place - below
    return (below.long(), 1 - part), ((below + 1).clamp(max=side - 1).long(), part)


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Row and column of each patch, float32 [h * w], in the order of the patches."""
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    blocks = places.view(2, height // MERGE, MERGE, width // MERGE, MERGE).permute(0, 1, 3, 2, 4)
    rows, columns = blocks.reshape(2, -1).float()
    return rows, columns
