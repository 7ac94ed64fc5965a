"""What a tensor of an adapter is, by its name.

    base_model.model.X.lora_A.weight                [rank, in], of the linear module X
    base_model.model.X.lora_B.weight                [out, rank]
    base_model.model.X.lora_embedding_A             [rank, rows], of an embedding
    base_model.model.X.lora_embedding_B             [columns, rank]
    base_model.model.X.lora_magnitude_vector        [out], DoRA's lengths
    base_model.model.X.base_layer.lora_A.weight     of another 3-D parameter of X: peft's wrappers nest
    base_model.model.X.base_layer.weight            the base's own weight, as the factors were trained on it
    base_model.model.X.weight, X.A_log, ...         a module that was trained whole

X is a name in the trained model. A name of the adapter ("default") may follow lora_A and the others, as in the state
of a model that was not saved by save_pretrained.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Part(Enum):
    """The purpose of a tensor."""

    A = "lora_A"
    B = "lora_B"
    EMBEDDING_A = "lora_embedding_A"
    EMBEDDING_B = "lora_embedding_B"
    MAGNITUDE = "lora_magnitude_vector"
    WHOLE = "a weight"


_PREFIX = "base_model.model."
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\.")
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?:(?P<linear>lora_[AB])(?:\.default)?\.weight|(?P<embedding>lora_embedding_[AB])(?:\.default)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?)"
)
_WHOLE = re.compile(r"\.modules_to_save\.default(?=\.)|\.base_layer(?=\.)")
_TEXT = re.compile(
    r"(?:model\.language_model\.(?:model\.)?|language_model\.(?:model\.)?|model\.)?"
    r"((?:layers\.\d+|embed_tokens|norm)(?:\..+)?)"
)
_HEAD = re.compile(r"(?:model\.)?(?:language_model\.)?(lm_head(?:\..+)?)")

# Names that say why nothing here uses a tensor.
_REASONS = (
    (r"(^|\.)visual\.", "is of the vision tower, which is not exported yet: train the text model alone"),
    (r"(^|\.)mtp\.", "is of the draft head, which is not exported: train without it"),
    (r"\.token_adapter\.|trainable_tokens", "trains single rows of the embedding: merge it with peft"),
    (r"\.lora_B(\.default)?\.bias$", "is a bias, which Qwen 3.5 does not have: train without lora_bias"),
    (r"\.(vera_lambda|ia3_|hada_|lokr_|oft_|boft_)", "is not of LoRA: merge it with peft"),
    (r"\.conv1d\.(base_layer\.)?lora_", "is of a convolution: train without conv1d, or merge it with peft"),
    (r"\.bias$", "is a bias, which Qwen 3.5 does not have: train without it"),
)


@dataclass(frozen=True, slots=True)
class TensorName:
    """A tensor's name, taken apart.

    module is the module's name in the trained model, or a whole tensor's; ours is the same within the text model, as
    weight_names.py begins it ("layers.0.self_attn.q_proj", "lm_head"). depth counts nested wrappers.
    """

    part: Part
    module: str
    ours: str
    depth: int = 0


def read_name(name: str) -> TensorName | None:
    """Take a name apart; None if it names no part of the text model that an adapter can change."""
    plain = _WRAPPERS.sub("", name).removeprefix(_PREFIX)
    if why_unused(plain) is not None:
        return None
    found = _FACTOR.fullmatch(plain)
    if found is None:
        whole = _WHOLE.sub("", plain)
        ours = _in_text_model(whole)
        known = ours is not None and "." in ours and "lora_" not in whole
        return TensorName(Part.WHOLE, whole, ours) if ours is not None and known else None
    module, depth = found["module"], 0
    while module.endswith(".base_layer"):
        module, depth = module.removesuffix(".base_layer"), depth + 1
    ours = _in_text_model(module)
    if ours is None:
        return None
    return TensorName(Part(found["linear"] or found["embedding"] or found["magnitude"]), module, ours, depth)


def why_unused(name: str) -> str | None:
    """The reason why a tensor of this name changes nothing in an export, with a remedy; None: it is not known."""
    return next((reason for pattern, reason in _REASONS if re.search(pattern, name)), None)


def _in_text_model(name: str) -> str | None:
    found = _TEXT.fullmatch(name) or _HEAD.fullmatch(name)
    return None if found is None else found[1]
