"""Foresees from config.json how a checkpoint stores its weights, which an export keeps in every recipe.

A config.json names the type of the floats. Its quantization_config says which weights the checkpoint has as codes:
every linear module of the decoder layers, unless a rule excludes it. Callers do not ask for weights that recipes never
quantise, such as the router. The real tensors may differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.formats.codes import StoredCodes
from qwonnx.export.checkpoint.weight_names import DOWN, GATE_UP, ExpertTensor
from qwonnx.export.errors import ConfigError

_LAYER_WEIGHT = re.compile(r"(layers\..*)\.weight")
# Each weight of each layer is matched with each rule, and a plan must be quick.
_MAX_FORESEEN_RULES = 1 << 12
_MATRICES = {GATE_UP: ("gate_proj", "up_proj"), DOWN: ("down_proj",)}


@dataclass(frozen=True, slots=True)
class ForeseenFormats:
    """How a checkpoint of this configuration probably stores its weights."""

    config: ModelConfig
    codes: Callable[[str, tuple[int, ...]], frozenset[StoredCodes | None]] | None = None  # None: there are none

    def stored_codes(self, name: str, shape: tuple[int, ...]) -> frozenset[StoredCodes | None]:
        return frozenset((None,)) if self.codes is None else self.codes(name, shape)

    def is_bfloat16(self, name: str, shape: tuple[int, ...]) -> bool:
        return self.config.dtype == "bfloat16"


def foreseen_formats(config: ModelConfig) -> tuple[ForeseenFormats, str | None]:
    """What config.json says about the checkpoint's tensors, and a note if it has codes."""
    stored = config.quantization
    if stored is None or not stored.has_codes:
        return ForeseenFormats(config), None
    prefix = "model.language_model." if config.architecture.endswith("ForConditionalGeneration") else "model."

    def codes(name: str, shape: tuple[int, ...]) -> frozenset[StoredCodes | None]:
        modules = _modules(name)
        if not modules:
            return frozenset((None,))
        return frozenset(stored.foreseen_codes(prefix + module, shape[-1]) for module in modules)

    not_foreseen = "planned as if no weight had codes already, because they cannot be foreseen"
    if stored.num_rules > _MAX_FORESEEN_RULES:
        return ForeseenFormats(config), f"{not_foreseen}: config.json has {stored.num_rules} rules"
    try:
        stored.check_patterns()
    except ConfigError as error:
        return ForeseenFormats(config), f"{not_foreseen}: {error}"
    return ForeseenFormats(
        config, codes
    ), f"weights that config.json calls {stored.name} keep their codes in every recipe"


def _modules(name: str) -> tuple[str, ...]:
    """The modules of a weight (one expert's for all experts); empty for a weight that is not in a layer."""
    if experts := ExpertTensor.of(name):
        return tuple(f"{experts.prefix}0.{matrix}" for matrix in _MATRICES[experts.part])
    if weight := _LAYER_WEIGHT.fullmatch(name):
        return (weight[1],)
    return ()
