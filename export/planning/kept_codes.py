"""Foresees from config.json which weights a GPTQ checkpoint has as codes: an export keeps those in every recipe.

The rules are GPTQModel's (`dynamic`): every linear module of the decoder layers is quantised unless a rule excludes it.
Callers do not ask for weights that recipes never quantise, such as the router. The real tensors may differ.
"""

from __future__ import annotations

import re

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.source_quantization import GptqFormat, StoredCodes
from qwonnx.export.checkpoint.weight_names import DOWN, GATE_UP, ExpertTensor
from qwonnx.export.errors import ConfigError
from qwonnx.export.quantization.storage_plan import CodesOf

_LAYER_WEIGHT = re.compile(r"(layers\..*)\.weight")
# Each weight of each layer is matched with each rule, and a plan must be quick.
_MAX_FORESEEN_RULES = 1 << 12
_MATRICES = {GATE_UP: ("gate_proj", "up_proj"), DOWN: ("down_proj",)}


def foreseen_codes(config: ModelConfig) -> tuple[CodesOf | None, str]:
    """The expected codes of a GPTQ checkpoint, None if its rules cannot be read, and a note about them."""
    stored = config.quantization
    assert isinstance(stored, GptqFormat)
    prefix = "model.language_model." if config.architecture.endswith("ForConditionalGeneration") else "model."

    def codes(name: str, shape: tuple[int, ...]) -> frozenset[StoredCodes | None]:
        modules = _modules(name)
        if not modules:
            return frozenset((None,))
        return frozenset(stored.foreseen_codes(prefix + module, shape[-1]) for module in modules)

    not_foreseen = "planned as if no weight had codes already, because they cannot be foreseen"
    if len(stored.rules) > _MAX_FORESEEN_RULES:
        return None, f"{not_foreseen}: config.json has {len(stored.rules)} rules"
    try:
        for rule in stored.rules:
            rule.matches("")
    except ConfigError as error:
        return None, f"{not_foreseen}: {error}"
    return codes, f"weights that config.json calls {stored.name} keep their codes in every recipe"


def _modules(name: str) -> tuple[str, ...]:
    """The modules of a weight (one expert's for all experts); empty for a weight that is not in a layer."""
    if experts := ExpertTensor.of(name):
        return tuple(f"{experts.prefix}0.{matrix}" for matrix in _MATRICES[experts.part])
    if weight := _LAYER_WEIGHT.fullmatch(name):
        return (weight[1],)
    return ()
