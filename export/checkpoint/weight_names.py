"""Names of weights, and the kind and role that a name means.

    embed_tokens.weight                                     the embedding, and the head if it is tied
    layers.N.input_layernorm.weight                         norms: *norm.weight
    layers.N.linear_attn.{in_proj_*,conv1d,out_proj}.weight, .decay_scale, .dt_bias
    layers.N.self_attn.{q,k,v,o}_proj.weight
    layers.N.mlp.{gate,up,down}_proj.weight                 of a dense layer
    layers.N.mlp.gate.weight                                the router
    layers.N.mlp.experts.{gate_up_proj,down_proj}           of all experts, [num_experts, rows, columns]
    layers.N.mlp.shared_expert.{gate,up,down}_proj.weight, shared_expert_gate.weight
    lm_head.weight                                          the head

Names are the exporter's: the checkpoint's without the prefix of the text model (weight_source.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from qwonnx.export.checkpoint.config import ModelConfig

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"

# A layer's module of experts, and its two tensors.
EXPERTS, GATE_UP, DOWN = "mlp.experts", "gate_up_proj", "down_proj"
_EXPERT_TENSOR = re.compile(rf"(.*\.{re.escape(EXPERTS)}\.)({GATE_UP}|{DOWN})")

# Small, and sensitive to rounding: a rounded router picks other experts, a rounded decay forgets or explodes.
_NEVER_QUANTIZED = (
    "*norm.weight",
    "layers.*.mlp.gate.weight",
    "layers.*.mlp.shared_expert_gate.weight",
    "layers.*.linear_attn.in_proj_a.weight",
    "layers.*.linear_attn.in_proj_b.weight",
    "layers.*.linear_attn.conv1d.weight",
    "layers.*.linear_attn.decay_scale",
    "layers.*.linear_attn.dt_bias",
)

# The first pattern that a weight's name contains decides its kind.
_KINDS = (
    ("embedding", r"^embed_tokens\."),
    ("lm_head", r"^lm_head\."),
    ("experts", rf"\.{re.escape(EXPERTS)}\."),
    ("shared_expert", r"\.mlp\.shared_expert\."),
    ("router", r"\.mlp\.(gate|shared_expert_gate)\."),
    ("norms", r"norm\.weight$"),
    ("linear_attention", r"\.linear_attn\."),
    ("attention", r"\.self_attn\."),
    ("mlp", r"\.mlp\."),
)


class Role(Enum):
    """The purpose of a weight, which decides how a kernel uses it."""

    EMBEDDING = "rows are looked up"
    PROJECTION = "a matrix that multiplies an activation"
    EXPERTS = "matrices of all experts of a layer, of which a token uses some"
    VECTOR = "norms, decays, the convolution: small, and never quantised"


@dataclass(frozen=True, slots=True)
class ExpertTensor:
    """One of the two tensors of a layer's experts: gate and up [E, 2 * I, H], or down [E, H, I]."""

    prefix: str  # of both tensors' names, with its dot
    part: str  # GATE_UP or DOWN

    @classmethod
    def of(cls, name: str) -> ExpertTensor | None:
        """The tensor of this name; None if it is not a tensor of experts."""
        found = _EXPERT_TENSOR.fullmatch(name) if EXPERTS in name else None
        return None if found is None else cls(found[1], found[2])

    @property
    def is_gate_up(self) -> bool:
        return self.part == GATE_UP

    @property
    def sibling(self) -> str:
        """The layer's other tensor."""
        return self.prefix + (DOWN if self.is_gate_up else GATE_UP)

    def sibling_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The shape of the layer's other tensor, from this one's."""
        num_experts, num_rows, num_columns = shape
        if self.is_gate_up:
            return num_experts, num_columns, num_rows // 2
        return num_experts, 2 * num_columns, num_rows


def tied_weights(config: ModelConfig) -> Mapping[str, str]:
    """Tied weights: name -> name of the weight that is stored."""
    return {HEAD: EMBEDDING} if config.tie_word_embeddings else {}


def is_never_quantized(name: str) -> bool:
    """Whether a weight (or every weight that a pattern of names can match) stays float32 in every recipe."""
    return any(fnmatchcase(name, pattern) for pattern in _NEVER_QUANTIZED)


def kind_of(name: str) -> str:
    """The kind of a weight by its name, for display."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, name)), "other")


def role_of(name: str, shape: tuple[int, ...]) -> Role:
    """The purpose of a weight."""
    if name == EMBEDDING:
        return Role.EMBEDDING
    if ExpertTensor.of(name) is not None:
        return Role.EXPERTS
    return Role.PROJECTION if len(shape) == 2 else Role.VECTOR
