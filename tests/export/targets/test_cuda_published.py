"""The published geometries, cut to four layers, for NVIDIA's GPUs: shapes and types, without weights."""

from __future__ import annotations

import pytest
import torch

from qwonnx.export.checkpoint.config import parse_config
from qwonnx.export.modeling.trace import trace_decoder
from qwonnx.export.quantization.cache_scales import CacheScales
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.export.targets.lowered_graph import lower_decoder
from qwonnx.export.targets.register import choose_target
from tests.checkpoints.published import PUBLISHED

FOUR_LAYERS = {"num_hidden_layers": 4, "layer_types": [*["linear_attention"] * 3, "full_attention"]}


# The others have the same layers in other widths.
LARGER = [pytest.param(name, marks=pytest.mark.soak) for name in ("122B-A10B", "397B-A17B", "27B")]


@pytest.mark.parametrize("name", ["35B-A3B", "9B", *LARGER])
def test_every_node_has_a_kernel_whatever_the_activations(name: str) -> None:
    document = PUBLISHED[name].config()
    document["text_config"].update(FOUR_LAYERS)
    config = parse_config(document)
    traced = trace_decoder(config)
    caches = [("float16", "float16"), ("float16", "int8"), ("float16", "int4"), ("bfloat16", "fp8")]
    for activations, kv in caches if name == "35B-A3B" else caches[::3]:
        choice = choose_target("cuda", activations, kv)
        ones = torch.ones(config.num_key_value_heads, config.head_dim)
        scales = {3: CacheScales(ones, ones)} if choice.kv.is_quantized else None
        lowered = lower_decoder(traced.clone(), Recipe.named(choice.target.default_recipe), config, choice, scales)
        assert {node.domain for node in lowered.model.graph} == {"", "com.microsoft"}
    # An export that ends has passed the list of importers too.
    lower_decoder(traced.clone(), Recipe.preset("int4", 128), config, choose_target("rtx"), None)
