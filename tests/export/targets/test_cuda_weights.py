"""The target's own recipe: every weight of every published size is stored as the fast kernels want it."""

from __future__ import annotations

import pytest

from qwonnx.export.checkpoint.config import parse_config
from qwonnx.export.checkpoint.weight_names import Role
from qwonnx.export.planning.decoder_weights import planned_weights
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.export.targets.register import TARGETS, choose_target
from tests.checkpoints.published import PUBLISHED

pytestmark = pytest.mark.fast

# Output features that fpA_intB of 1.31.1 divides, by bits; 64 divides its input features.
MULTIPLES = {4: 64, 8: 32}


@pytest.mark.parametrize("size", PUBLISHED)
def test_every_projection_meets_the_rules_of_the_fast_kernel(size: str) -> None:
    config = parse_config(PUBLISHED[size].config())
    recipe = Recipe.choose(None, None, None, TARGETS["cuda"].default_recipe)
    weights = planned_weights(config, recipe, choose_target("cuda"))
    stored = [weight for weight in weights if weight.storage.is_quantized and weight.role is Role.PROJECTION]
    assert len(stored) >= 3 * config.num_hidden_layers
    for weight in stored:
        assert (weight.storage.block_size, weight.storage.has_zero_points) == (32, False), weight.name
        assert weight.num_rows % MULTIPLES[weight.storage.bits] == 0, weight.name
        assert weight.num_columns % 64 == 0, weight.name
    blocks = {(each.storage.bits, each.storage.block_size) for each in weights if each.role is Role.EXPERTS}
    assert blocks == ({(4, 64)} if config.num_experts else set())
