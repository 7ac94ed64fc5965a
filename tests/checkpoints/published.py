"""config.json of the eight published sizes of Qwen 3.5, with the fields that a plan or an export reads.

Sizes are those of the model cards; the token ids are the published vocabulary's.
"""

from __future__ import annotations

from tests.checkpoints.config_json import TINY_TEXT, Json, config_json, text_config

_TOKEN_IDS = {
    "<|endoftext|>": 248044,
    "<|im_end|>": 248046,
    "<|vision_start|>": 248053,
    "<|vision_end|>": 248054,
    "<|image_pad|>": 248056,
    "<|video_pad|>": 248057,
}

# What all sizes share beyond what the tiny checkpoint shares with them.
_COMMON: Json = {
    **TINY_TEXT,
    "head_dim": 256,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_value_head_dim": 128,
    "mtp_num_hidden_layers": 1,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
    "vocab_size": 248320,
}

_MOE, _DENSE = "Qwen3_5MoeForConditionalGeneration", "Qwen3_5ForConditionalGeneration"


def _moe(layers: int, hidden: int, heads: int, value_heads: int, experts: int, top_k: int, inner: int) -> Json:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "linear_num_value_heads": value_heads,
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": inner,
        "shared_expert_intermediate_size": inner,
        "router_aux_loss_coef": 0.001,
    }


def _dense(layers: int, hidden: int, heads: int, kv_heads: int, value_heads: int, inner: int, tied: bool) -> Json:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "linear_num_value_heads": value_heads,
        "intermediate_size": inner,
        "tie_word_embeddings": tied,
    }


_SIZES: dict[str, Json] = {
    "397B-A17B": _moe(60, 4096, 32, 64, 512, 10, 1024),
    "122B-A10B": _moe(48, 3072, 32, 64, 256, 8, 1024),
    "35B-A3B": _moe(40, 2048, 16, 32, 256, 8, 512),
    "27B": _dense(64, 5120, 24, 4, 48, 17408, False),
    "9B": _dense(32, 4096, 16, 4, 32, 12288, False),
    "4B": _dense(32, 2560, 16, 4, 32, 9216, True),
    "2B": _dense(24, 2048, 8, 2, 16, 6144, True),
    "0.8B": _dense(24, 1024, 8, 2, 16, 3584, True),
}
SIZES = tuple(_SIZES)


def published_config(size: str) -> Json:
    """config.json of one of SIZES."""
    architecture = _MOE if "num_experts" in _SIZES[size] else _DENSE
    sizes = _SIZES[size]
    text = text_config(architecture, {**_COMMON, **sizes}, _TOKEN_IDS, {})
    text["tie_word_embeddings"] = sizes.get("tie_word_embeddings", False)
    return config_json(architecture, text, _TOKEN_IDS)
