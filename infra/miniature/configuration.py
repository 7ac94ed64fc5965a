"""config.json of the miniature, and of a model that is small enough to train in a test.

The miniature has nine million parameters: 32 experts of eight layers hold half of them. Every width is a multiple of
32, so that weights quantise in the blocks of the real models' kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.checkpoints.config_json import Json, config_json, text_config

ARCHITECTURE = "Qwen3_5MoeForConditionalGeneration"

_COMMON: Json = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_output_gate": True,
    "dtype": "bfloat16",
    "full_attention_interval": 4,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "linear_conv_kernel_dim": 4,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 16384,
    "mlp_only_layers": [],
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "num_experts_per_tok": 4,
    "rms_norm_eps": 1e-06,
    "router_aux_loss_coef": 0.001,
    "tie_word_embeddings": True,
    "use_cache": True,
}
_ROPE: Json = {
    "mrope_interleaved": True,
    "partial_rotary_factor": 0.25,
    "rope_theta": 10000000,
    "rope_type": "default",
}

MINIATURE_TEXT: Json = {
    **_COMMON,
    "hidden_size": 192,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 48,
    "linear_value_head_dim": 48,
    "moe_intermediate_size": 32,
    "num_experts": 32,
    "shared_expert_intermediate_size": 96,
    "rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]},
}
MINIATURE_VISION: Json = {"hidden_size": 96, "depth": 2, "num_heads": 4, "intermediate_size": 256}

# A model that trains for a few steps in seconds; every mechanism once.
PROBE_TEXT: Json = {
    **MINIATURE_TEXT,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "moe_intermediate_size": 16,
    "num_experts": 8,
    "shared_expert_intermediate_size": 32,
    "rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]},
}
PROBE_VISION: Json = {"hidden_size": 32, "depth": 1, "num_heads": 2, "intermediate_size": 64}


def configuration(
    token_ids: Mapping[str, int],
    vocab_size: int,
    *,
    text: Mapping[str, Any] = MINIATURE_TEXT,
    vision: Mapping[str, Any] = MINIATURE_VISION,
) -> Json:
    """The whole config.json, for a vocabulary whose special tokens have these ids."""
    described = text_config(ARCHITECTURE, {**text, "vocab_size": vocab_size}, token_ids, {"tie_word_embeddings": True})
    config = config_json(ARCHITECTURE, described, token_ids)
    config["vision_config"] |= {"num_position_embeddings": 64, **vision}
    return config


def preprocessor_config() -> Json:
    """preprocessor_config.json: the published one, but small pictures are not enlarged."""
    return {
        "size": {"longest_edge": 1048576, "shortest_edge": 1024},  # areas in pixels; one visual token has 1024
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
