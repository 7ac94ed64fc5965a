"""The large checkpoint is too large for a test, so one tensor is tested."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.checkpoints import geometry
from tests.checkpoints.config_json import GEOMETRY_TEXT, text_config
from tests.checkpoints.tensors import TensorPlan, lm_head, text_tensors
from tests.checkpoints.tokenizer import token_ids

pytestmark = pytest.mark.fast


def test_it_has_the_geometry_of_35b_a3b_in_6_9_gigabytes() -> None:
    text = text_config("Qwen3_5MoeForConditionalGeneration", GEOMETRY_TEXT, token_ids(), {})
    shapes = {plan.name: plan.shape for plan in (*text_tensors(text), lm_head(text))}
    assert shapes["layers.0.linear_attn.in_proj_qkv.weight"] == (8192, 2048)
    assert shapes["layers.3.self_attn.q_proj.weight"] == (8192, 2048)
    assert shapes["layers.3.self_attn.o_proj.weight"] == (2048, 4096)
    assert shapes["layers.3.mlp.experts.gate_up_proj"] == (256, 1024, 2048)
    assert shapes["lm_head.weight"] == (24832, 2048)
    assert 6.9e9 < 2 * sum(math.prod(shape) for shape in shapes.values()) < 6.95e9


def test_tiled_tensors_have_normal_values_and_no_row_twice() -> None:
    block = np.random.default_rng(0).standard_normal(geometry._BLOCK_VALUES, np.float32)
    plan = TensorPlan("experts", (9000, 2048), high=0.5)  # twice the block, and some
    stored = geometry.stored_row(plan, block, seed=0)
    content = b"".join(stored.chunks())
    assert len(content) == stored.num_bytes
    rows = np.frombuffer(content, np.uint16).reshape(plan.shape)
    assert len({row.tobytes() for row in rows}) == len(rows)
    values = (rows[::50].astype(np.uint32) << 16).view(np.float32)
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 0.5) < 0.01
