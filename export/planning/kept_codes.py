"""Which weights a GPTQ checkpoint has as codes, from config.json alone: an export keeps those, whatever the recipe.

The rules are GPTQModel's (`dynamic`): every linear module of the decoder layers is quantised unless a rule says
otherwise; what recipes never quantise, the router above all, does not come here. Tensors may tell otherwise.
"""

from __future__ import annotations

import re

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.source_quantization import GptqFormat, StoredCodes
from qwonnx.export.checkpoint.weight_names import DOWN, GATE_UP, ExpertTensor
from qwonnx.export.errors import ConfigError
from qwonnx.export.quantization.storage_plan import CodesOf

_LAYER_WEIGHT = re.compile(r"(layers\..*)\.weight")
# Each weight of each layer is held against each rule; a plan is to take no longer than it takes to read.
_MAX_FORESEEN_RULES = 1 << 12
_MATRICES = {GATE_UP: ("gate_proj", "up_proj"), DOWN: ("down_proj",)}


def foreseen_codes(config: ModelConfig) -> tuple[CodesOf | None, str]:
    """What a GPTQ checkpoint should have as codes, None if its rules cannot be read; and a note that says so."""
    stored = config.quantization
    assert isinstance(stored, GptqFormat)
    prefix = "model.language_model." if config.architecture.endswith("ForConditionalGeneration") else "model."

    def codes(name: str, shape: tuple[int, ...]) -> frozenset[StoredCodes | None]:
        modules = _modules(name)
        if not modules:
            return frozenset((None,))
        return frozenset(stored.foreseen_codes(prefix + module, shape[-1]) for module in modules)

    not_foreseen = "planned as if no weight had codes already, for they cannot be foreseen"
    if len(stored.rules) > _MAX_FORESEEN_RULES:
        return None, f"{not_foreseen}: config.json has {len(stored.rules)} rules"
    try:
        for rule in stored.rules:
            rule.matches("")
    except ConfigError as error:
        return None, f"{not_foreseen}: {error}"
    return codes, f"weights that config.json calls {stored.name} keep their codes, whatever the recipe"


def _modules(name: str) -> tuple[str, ...]:
    """The modules that a weight comes from, one expert's for all; none for those that are not in a layer."""
    if experts := ExpertTensor.of(name):
        return tuple(f"{experts.prefix}0.{matrix}" for matrix in _MATRICES[experts.part])
    if weight := _LAYER_WEIGHT.fullmatch(name):
        return (weight[1],)
    return ()
