"""Parts of weights that a target may store: halves of heads, logarithms, experts that are filled up with zeros."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.config import ModelConfig, load_config
from qwonnx.export.checkpoint.row_reader import RowReader
from qwonnx.export.checkpoint.weight_part import Form, WeightPart
from qwonnx.export.checkpoint.weight_source import WeightSource


@pytest.fixture(scope="module")
def config(tiny_checkpoint: Path) -> ModelConfig:
    return load_config(tiny_checkpoint)


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Path, config: ModelConfig) -> WeightSource:
    return WeightSource(Checkpoint.open(tiny_checkpoint), config)


def everything(reader: RowReader) -> torch.Tensor:
    return reader.read(0, reader.num_rows)


def test_queries_and_gates_are_the_halves_of_every_head(source: WeightSource, config: ModelConfig) -> None:
    layer = config.layer_types.index("full_attention")
    name, rows = f"layers.{layer}.self_attn.q_proj.weight", 2 * config.num_attention_heads * config.head_dim
    shape = rows, config.hidden_size
    whole = everything(source.rows(name, shape)).view(config.num_attention_heads, 2, config.head_dim, -1)
    for half, form in enumerate((Form.QUERIES, Form.GATES)):
        part = WeightPart(name, shape, form)
        reader = source.part(part)
        assert part.stored_shape == (rows // 2, config.hidden_size) == (reader.num_rows, reader.num_columns)
        assert torch.equal(everything(reader), whole[:, half].reshape(rows // 2, -1))
        # Any slice, across heads too.
        assert torch.equal(reader.read(3, config.head_dim + 5), everything(reader)[3 : config.head_dim + 8])


def test_a_logarithm_is_what_the_checkpoint_has(source: WeightSource, config: ModelConfig) -> None:
    name, shape = "layers.0.linear_attn.decay_scale", (config.linear_num_value_heads,)
    stored = everything(source.part(WeightPart(name, shape, Form.LOGARITHM)))
    assert torch.equal(-stored.exp(), everything(source.rows(name, shape)))


@pytest.mark.parametrize("multiple", [48, 128])
def test_experts_get_zeros_that_change_no_result(source: WeightSource, config: ModelConfig, multiple: int) -> None:
    experts, hidden, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
    filled = -(-inner // multiple) * multiple
    assert filled > inner
    prefix = "layers.0.mlp.experts."
    up = WeightPart(f"{prefix}gate_up_proj", (experts, 2 * inner, hidden), multiple=multiple)
    down = WeightPart(f"{prefix}down_proj", (experts, hidden, inner), multiple=multiple)
    assert (up.stored_shape, down.stored_shape) == ((experts, 2 * filled, hidden), (experts, hidden, filled))
    ups = everything(source.part(up)).view(up.stored_shape)
    downs = everything(source.part(down)).view(down.stored_shape)
    assert torch.equal(ups[:, : 2 * inner], everything(source.rows(up.name, up.shape)).view(up.shape))
    assert torch.equal(downs[:, :, :inner], everything(source.rows(down.name, down.shape)).view(down.shape))
    assert not ups[:, 2 * inner :].any()
    assert not downs[:, :, inner:].any()
    reader = source.part(up)
    for start, count in ((0, 1), (2 * inner - 3, 7), (2 * filled - 1, 2 * filled + 2)):
        assert torch.equal(reader.read(start, count), ups.view(-1, hidden)[start : start + count])
