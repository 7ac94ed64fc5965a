"""Tensors in the forms that other converters and quantisers leave them, which the layouts do not have."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from qwonnx.export.checkpoint.config import ModelConfig, load_config
from qwonnx.export.checkpoint.gguf.block_types import BLOCK_TYPES
from qwonnx.export.checkpoint.gguf.header import GgufTensor
from qwonnx.export.checkpoint.gguf.published_tensors import PublishedTensor, published_tensors
from qwonnx.export.errors import TensorFormatError

pytestmark = pytest.mark.fast

FLOAT = BLOCK_TYPES[0]
LINEAR, FULL, DRAFT = 0, 3, 4  # layers of the tiny checkpoint


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> ModelConfig:
    return load_config(tiny_checkpoint)


class Stored:
    """Tensors of F32 in memory, each full of its own numbers."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.tensors: dict[str, GgufTensor] = {}
        self.values: dict[str, npt.NDArray[np.float32]] = {}
        end = 0
        for name, shape in shapes.items():
            size = math.prod(shape)
            self.values[name] = np.arange(end, end + size, dtype=np.float32).reshape(shape)
            self.tensors[name] = GgufTensor(name, FLOAT, shape, 4 * end, 4 * size, Path("m.gguf"))
            end += size
        self._content = np.arange(end, dtype=np.float32).view(np.uint8)

    def published(self, config: ModelConfig) -> dict[str, PublishedTensor]:
        return published_tensors(self.tensors, config)

    def read(self, tensor: PublishedTensor) -> npt.NDArray[np.float32]:
        count = math.prod(tensor.shape)
        whole = tensor.floats(0, count, self._bytes)
        # Any part is the same as that part of the whole.
        for start, size in ((0, 1), (count // 3, count // 2), (count - 1, 1), (count, 0)):
            assert np.array_equal(tensor.floats(start, size, self._bytes), whole[start : start + size])
        return whole.reshape(tensor.shape)

    def _bytes(self, path: Path, offset: int, count: int) -> npt.NDArray[np.uint8]:
        return self._content[offset : offset + count]


def test_fused_projections_of_full_attention_are_parted(tiny: ModelConfig) -> None:
    stored = Stored(**{f"blk.{FULL}.attn_qkv.weight": (256 + 64 + 64, 128)})
    found = stored.published(tiny)
    prefix = f"model.layers.{FULL}.self_attn."
    assert [found[f"{prefix}{part}_proj.weight"].shape[0] for part in "qkv"] == [256, 64, 64]
    parts = [stored.read(found[f"{prefix}{part}_proj.weight"]) for part in "qkv"]
    assert np.array_equal(np.concatenate(parts), stored.values[f"blk.{FULL}.attn_qkv.weight"])


def test_gate_and_up_of_experts_are_one_tensor(tiny: ModelConfig) -> None:
    names = [f"blk.{LINEAR}.ffn_{part}_exps.weight" for part in ("gate", "up")]
    stored = Stored(**dict.fromkeys(names, (3, 5, 8)))
    (found,) = stored.published(tiny).values()
    assert (found.name, found.shape) == (f"model.layers.{LINEAR}.mlp.experts.gate_up_proj", (3, 10, 8))
    assert np.array_equal(stored.read(found), np.concatenate([stored.values[name] for name in names], axis=1))


def test_experts_that_are_fused_already_stay_so(tiny: ModelConfig) -> None:
    (found,) = Stored(**{f"blk.{LINEAR}.ffn_gate_up_exps.weight": (3, 10, 8)}).published(tiny).values()
    assert (found.name, found.shape) == (f"model.layers.{LINEAR}.mlp.experts.gate_up_proj", (3, 10, 8))


def test_first_axes_of_size_one_come_back(tiny: ModelConfig) -> None:
    names = {"ffn_gate_inp_shexp.weight": (128,), "ffn_down_exps.weight": (128, 64), "attn_norm.weight": (128,)}
    found = Stored(**{f"blk.{LINEAR}.{name}": shape for name, shape in names.items()}).published(tiny)
    assert [tensor.shape for tensor in found.values()] == [(1, 128), (1, 128, 64), (128,)]


def test_value_heads_are_grouped_by_key_head_again(tiny: ModelConfig) -> None:
    config = dataclasses.replace(tiny, linear_num_key_heads=2, linear_num_value_heads=6)
    name = f"blk.{LINEAR}.ssm_dt.bias"
    stored = Stored(**{name: (6,)})
    # Stored: the first value head of both key heads, then the second, then the third.
    assert stored.read(next(iter(stored.published(config).values()))).tolist() == [0, 2, 4, 1, 3, 5]


def test_draft_layers_are_those_of_the_published_head(tiny: ModelConfig) -> None:
    names = ("attn_q.weight", "nextn.eh_proj.weight", "nextn.enorm.weight", "nextn.shared_head_norm.weight")
    found = Stored(**{f"blk.{DRAFT}.{name}": (2, 2) for name in names}).published(tiny)
    assert [*found] == [
        "mtp.layers.0.self_attn.q_proj.weight",
        "mtp.fc.weight",
        "mtp.pre_fc_norm_embedding.weight",
        "mtp.norm.weight",
    ]


def test_names_that_are_not_known_stay(tiny: ModelConfig) -> None:
    names = ("rope_freqs.weight", "blk.0.attn_q.weight", "blk.0.ffn_up_exps.scale", "blk.0.ffn_gate_exps.weight")
    assert [*Stored(**dict.fromkeys(names, (2, 2))).published(tiny)] == [*names]


def test_two_tensors_for_one_are_refused(tiny: ModelConfig) -> None:
    stored = Stored(**{"output_norm.weight": (2,), "model.norm.weight": (2,)})
    with pytest.raises(TensorFormatError, match=r"has two tensors that stand for 'model\.norm\.weight'"):
        stored.published(tiny)
