"""What a memory budget allows: tokens of a layer, rows of a head. Pure arithmetic of sizes."""

from __future__ import annotations

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.errors import VerificationError
from qwonnx.runtime.quantities import bytes_text

# Hidden states of two sequences in float32, and the copies of them that a layer holds at a time: measured on the
# geometry of 35B-A3B and on two layers of 397B-A17B.
_SEQUENCES, _FLOAT32_BYTES = 2, 4
_COPIES_OF_HIDDEN, _COPIES_OF_WIDEST = 8, 12
# float64 copies of a slice of logits, of two models and the artifact's head alone.
_LOGIT_COPIES, _FLOAT64_BYTES = 10, 8
MIN_TOKENS = 32


def affordable_tokens(memory_bytes: int, config: ModelConfig, at_most: int) -> int:
    """Tokens whose activations within a layer take at most half of the memory.

    Raises:
        VerificationError: these are too few to compare models by.
    """
    mixer = max(
        2 * config.num_attention_heads * config.head_dim,
        2 * config.linear_num_key_heads * config.linear_key_head_dim
        + 2 * config.linear_num_value_heads * config.linear_value_head_dim,
    )
    values = _COPIES_OF_HIDDEN * config.hidden_size + _COPIES_OF_WIDEST * mixer
    each = _SEQUENCES * _FLOAT32_BYTES * values
    tokens = memory_bytes // 2 // each
    if tokens < min(MIN_TOKENS, at_most):
        raise VerificationError(
            f"memory of {bytes_text(memory_bytes)} is too little for a layer of this model: allow at least"
            f" {bytes_text(2 * MIN_TOKENS * each)}"
        )
    return min(tokens, at_most)


def head_rows(memory_bytes: int, num_tokens: int) -> int:
    """Rows of the head whose logits at all tokens, and copies of these, take at most a quarter of the memory."""
    return max(1, memory_bytes // 4 // (_LOGIT_COPIES * _FLOAT64_BYTES * num_tokens))


def whole_model_bytes(num_parameters: int) -> int:
    """A model in float32."""
    return _FLOAT32_BYTES * num_parameters
