"""The fields of config.json: how they are read, and which of them matter.

config.py reads the fields in READ. Those in FIXED must have one of a few values; those in IGNORED cannot matter.

Any other field of the text model is refused unless it is off (null, false, empty): it may change the model, and an
export that ignores it would silently give wrong answers. Outside a nested text_config only FIXED is checked, because
the other fields there describe other parts of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwonnx.export.errors import ConfigError
from qwonnx.runtime.artifact.object_fields import ObjectFields, is_off

# Read, checked and used by config.py, quantization_config by source_quantization.py.
READ = frozenset(
    {
        "architectures",
        "dtype",
        "full_attention_interval",
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "layer_types",
        "linear_conv_kernel_dim",
        "linear_key_head_dim",
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_value_head_dim",
        "max_position_embeddings",
        "model_type",
        "moe_intermediate_size",
        "num_attention_heads",
        "num_experts",
        "num_experts_per_tok",
        "num_hidden_layers",
        "num_key_value_heads",
        "partial_rotary_factor",
        "quantization_config",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "shared_expert_intermediate_size",
        "tie_word_embeddings",
        "torch_dtype",
        "vocab_size",
    }
)

# May be absent; if present, any other value changes the maths. The last column is the remedy.
FIXED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "attention_bias": ((False, None), "only attention without bias is supported"),
    "attn_output_gate": ((True,), "only gated attention is supported"),
    "compression_config": ((None,), "export the checkpoint that is not compressed"),
    "decoder_sparse_step": ((1, None), "only models with experts in every layer are supported"),
    "hidden_act": (("silu",), "only silu is supported"),
    "mamba_ssm_dtype": (("float32", None), "only a float32 recurrent state is supported"),
    "mlp_only_layers": (([], None), "only models with experts in every layer are supported"),
    "norm_topk_prob": ((True, None), "only renormalised expert weights are supported"),
    "output_gate_type": (("swish", "silu", None), "only a swish output gate is supported"),
    "quantization": ((None,), "MLX wrote it; export the checkpoint that it was made from"),
    "routed_scaling_factor": ((1, None), "only an unscaled sum of experts is supported"),
    "transformers_weights": ((None,), "remove it, and choose the file with --weights-file"),
    "scoring_func": (("softmax", None), "only a softmax router is supported"),
}

# Training, bookkeeping, other parts of the model, and settings that generation code reads from other files.
IGNORED = frozenset(
    {
        "attention_dropout",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_decoder",
        "label2id",
        "language_model_only",
        "max_length",
        "mrope_interleaved",  # also checked within rope_parameters
        "name_or_path",
        "output_router_logits",
        "pad_token_id",
        "return_dict",
        "router_aux_loss_coef",
        "transformers_version",
        "use_cache",
    }
)
IGNORED_PREFIXES = ("_", "mtp_", "unsloth_")


def odd_fields(text: Mapping[str, Any]) -> list[str]:
    """Names of the unknown fields that are not off."""
    known = READ | IGNORED | FIXED.keys()
    return sorted(
        name
        for name, value in text.items()
        if name not in known and not name.startswith(IGNORED_PREFIXES) and not is_off(value)
    )


class Fields(ObjectFields):
    """The fields of config.json, or of an object in it; all methods raise ConfigError."""

    error_type = ConfigError
