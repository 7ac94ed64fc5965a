"""config.json of the checkpoints we make, with the fields and the nesting of the published ones.

A `text_config` is the one description of a model here: tensors.py derives every name and shape from it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

MOE_ARCHITECTURES = ("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM")
DENSE_ARCHITECTURES = ("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM")
ARCHITECTURES = MOE_ARCHITECTURES + DENSE_ARCHITECTURES

# Fields that all sizes of Qwen 3.5 have in common.
COMMON_TEXT: Json = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_output_gate": True,
    "dtype": "bfloat16",
    "full_attention_interval": 4,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "linear_conv_kernel_dim": 4,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "mtp_num_hidden_layers": 0,  # 1 in the published files, which hold that layer
    "mtp_use_dedicated_embeddings": False,
    "rms_norm_eps": 1e-06,
    "use_cache": True,
}

# About two million parameters: every mechanism of the real model once, each with sizes that cannot be confused with
# another's if that is possible (value heads are twice the key heads, the rotary part is a quarter of a head).
TINY_TEXT: Json = {
    **COMMON_TEXT,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "vocab_size": 1280,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
}
# Heads of which 16 values are rotated, as the kernels of targets for a GPU want it.
HEADS_OF_64: Json = {
    "head_dim": 64,
    "rope_parameters": TINY_TEXT["rope_parameters"] | {"mrope_section": [4, 2, 2]},
}
TINY_MOE: Json = {
    "moe_intermediate_size": 64,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 64,
}
TINY_DENSE: Json = {"intermediate_size": 384}

# Qwen3.5-35B-A3B with 4 of its 40 layers and a tenth of its vocabulary.
GEOMETRY_TEXT: Json = {
    **COMMON_TEXT,
    "hidden_size": 2048,
    "num_hidden_layers": 4,
    "vocab_size": 24832,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
    "moe_intermediate_size": 512,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
}


def model_type(architecture: str) -> str:
    """config.json's model_type of the whole model: qwen3_5_moe or qwen3_5."""
    return "qwen3_5_moe" if architecture in MOE_ARCHITECTURES else "qwen3_5"


def is_nested(architecture: str) -> bool:
    """True for the published form, which has text_config and vision_config; false for a text-only checkpoint."""
    return architecture.endswith("ForConditionalGeneration")


def text_config(
    architecture: str, base: Mapping[str, Any], token_ids: Mapping[str, int], overrides: Mapping[str, Any]
) -> Json:
    """The text model's description: `base`, ids of the special tokens, then `overrides` (None removes a field)."""
    config = copy.deepcopy(dict(base))
    interval = config["full_attention_interval"]
    config["layer_types"] = [
        "full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(config["num_hidden_layers"])
    ]
    config["model_type"] = model_type(architecture) + "_text"
    config["bos_token_id"] = token_ids["<|endoftext|>"]
    config["eos_token_id"] = token_ids["<|endoftext|>"]
    config["pad_token_id"] = None
    config["tie_word_embeddings"] = False
    config.update(copy.deepcopy(dict(overrides)))
    return {name: value for name, value in sorted(config.items()) if value is not None or name == "pad_token_id"}


def vision_config(architecture: str, text: Mapping[str, Any]) -> Json:
    """The smallest vision tower that has every part of the real one."""
    return {
        "deepstack_visual_indexes": [],
        "depth": 1,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 32,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "model_type": model_type(architecture),
        "num_heads": 2,
        "num_position_embeddings": 16,
        "out_hidden_size": text["hidden_size"],
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def config_json(
    architecture: str, text: Json, token_ids: Mapping[str, int], *, vision: Mapping[str, Any] | None = None
) -> Json:
    """The whole config.json: nested with a vision_config, or flat, by the architecture.

    vision has the fields that differ from the smallest vision tower.
    """
    if not is_nested(architecture):
        return {"architectures": [architecture], **text, "transformers_version": "4.57.0.dev0"}
    return {
        "architectures": [architecture],
        "image_token_id": token_ids["<|image_pad|>"],
        "model_type": model_type(architecture),
        "text_config": text,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "transformers_version": "4.57.0.dev0",
        "video_token_id": token_ids["<|video_pad|>"],
        "vision_config": {**vision_config(architecture, text), **(vision or {})},
        "vision_end_token_id": token_ids["<|vision_end|>"],
        "vision_start_token_id": token_ids["<|vision_start|>"],
    }


def generation_config(token_ids: Mapping[str, int]) -> Json:
    """generation_config.json as the larger models have it."""
    return {
        "bos_token_id": token_ids["<|endoftext|>"],
        "do_sample": True,
        "eos_token_id": [token_ids["<|im_end|>"], token_ids["<|endoftext|>"]],
        "pad_token_id": token_ids["<|endoftext|>"],
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "transformers_version": "4.57.0.dev0",
    }
