"""adapter_config.json: rank and scaling of every module, and a refusal by name of what is not merged.

peft writes this file (0.21 has 45 fields). A field that changes the merged weights is read, or must be off. Others say
what was trained, which the tensors say too, or how. An unknown field that is not off is refused, as in config.json.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwonnx.runtime.artifact.object_fields import ObjectFields, is_off
from qwonnx.runtime.artifact.strict_json import StrictJsonError, quoted, read_object
from qwonnx.runtime.errors import AdapterError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MAX_CONFIG_BYTES = 16 << 20  # a rank for every module of every layer
_MAX_RANK = 1 << 16
_MAX_PATTERNS = 1 << 14

_MERGE = "merge it with peft (merge_and_unload, then save_pretrained) and export the result"
_CONVERT = "save it with path_initial_model_for_weight_conversion of peft, which makes a plain LoRA of it"

# Must be off: the field, what it means, and what to do.
_OFF: Mapping[str, tuple[str, str]] = {
    "alora_invocation_tokens": ("is of aLoRA, which changes only some tokens", "no merged model is equal to it"),
    "arrow_config": ("routes between adapters", "no merged model is equal to it"),
    "fan_in_fan_out": ("is for layers that Qwen 3.5 does not have", "set it to false if the base is Qwen 3.5"),
    "kasa_config": ("is of KaSA, which truncates the base's weights", _MERGE),
    "layer_replication": ("repeats layers of the base", _MERGE),
    "lora_bias": ("adds biases, which Qwen 3.5 does not have", "train without it"),
    "megatron_config": ("is of Megatron's parallel layers", _MERGE),
    "monteclora_config": ("is of MonteCLoRA, which draws weights", _MERGE),
    "trainable_token_indices": ("trains single rows of the embedding", _MERGE),
    "use_bdlora": ("is of BD-LoRA, which has block-diagonal factors", _MERGE),
    "use_qalora": ("is of QALoRA, which pools input features", _MERGE),
}
# Initialisations that change the base's weights, so that the saved factors alone do not make the trained model.
_CHANGED_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")
# Initialisations of a plain LoRA.
_PLAIN = (True, False, None, "gaussian", "eva", "orthogonal")

_READ = frozenset(
    {
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "ensure_weight_tying",
        "init_lora_weights",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "revision",
        "use_dora",
        "use_rslora",
    }
)
# What was trained and how: the tensors say the former, and the latter is over.
_IGNORED = frozenset(
    {
        "auto_mapping",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_version",
        "qalora_group_size",
        "runtime_config",
        "target_modules",
        "target_parameters",
        "task_type",
        "velora_config",  # another backward pass
    }
)
_IGNORED_PREFIXES = ("_", "unsloth_")

# Names, dots, numbers, `.*`, choices of names: everything that people write, and nothing that takes exponential time.
_PATTERN = re.compile(r"\^?(?:[\w-]|\\?\.|\.[*+]|\\d\+?|\[0-9\]\+?|\((?:\?:)?[\w.|-]+\))*\$?")
_MAX_WILDCARDS = 4


@dataclass(frozen=True, slots=True)
class _Overrides:
    """Values of the modules whose names, or the ends of whose names, match a pattern; the first pattern decides."""

    _entries: tuple[tuple[re.Pattern[str], float], ...]

    def of(self, module: str) -> float | None:
        """The value of a module, as peft's get_pattern_key finds it; None: it has none."""
        return next((value for pattern, value in self._entries if pattern.match(module)), None)


class _Fields(ObjectFields):
    """The fields of adapter_config.json, or of an object in it; all methods raise AdapterError."""

    error_type = AdapterError


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What adapter_config.json says about the merged weights.

    ranks and alphas override rank and alpha for the modules that their patterns match.
    """

    where: str  # names the file in errors
    base: str | None  # a folder or a hub repository, as it was where the adapter was trained
    base_revision: str | None
    rank: int
    alpha: float
    ranks: _Overrides
    alphas: _Overrides
    is_rank_stabilised: bool
    is_dora: bool
    keeps_tying: bool  # the head changes as the embedding does, if the base ties them

    def rank_of(self, module: str) -> int:
        """The rank of a module, by its name in the trained model ("model.layers.0.self_attn.q_proj")."""
        found = self.ranks.of(module)
        return self.rank if found is None else int(found)

    def scaling_of(self, module: str) -> float:
        """The factor of a module's product of factors."""
        found, rank = self.alphas.of(module), self.rank_of(module)
        alpha = self.alpha if found is None else found
        return alpha / math.sqrt(rank) if self.is_rank_stabilised else alpha / rank


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read and check an adapter's configuration.

    Raises:
        AdapterError: it is missing or malformed, not of a LoRA or DoRA adapter, or has a field that is not supported.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise AdapterError(f"{folder} has no {ADAPTER_CONFIG}: give the folder that peft's save_pretrained wrote")
    try:
        document = read_object(path, _MAX_CONFIG_BYTES)
    except StrictJsonError as error:
        raise AdapterError(f"{path} is malformed ({error}): restore it") from error
    return parse_adapter_config(document, str(path))


def parse_adapter_config(document: Mapping[str, Any], where: str = ADAPTER_CONFIG) -> AdapterConfig:
    """AdapterConfig of a parsed file; raises as read_adapter_config does."""
    kind = document.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{where}: peft_type is {quoted(kind, 40)}, and only LORA is merged: {_MERGE}")
    for name, (meaning, remedy) in _OFF.items():
        if not is_off(document.get(name)):
            raise AdapterError(f"{where}: {name} {meaning}: {remedy}")
    if document.get("bias", "none") != "none":
        raise AdapterError(
            f"{where}: bias is {quoted(document['bias'], 40)}, and Qwen 3.5 has no biases: train without"
        )
    _check_initialisation(document.get("init_lora_weights", True), where)
    known = _READ | _IGNORED | _OFF.keys()
    for name, value in document.items():
        if name not in known and not name.startswith(_IGNORED_PREFIXES) and not is_off(value):
            raise AdapterError(
                f"{where} has the field {quoted(name, 60)}, which is unknown here and may change the weights: {_MERGE}"
            )
    fields = _Fields(document, where)
    return AdapterConfig(
        where=fields.where,
        base=fields.text("base_model_name_or_path"),
        base_revision=fields.text("revision"),
        rank=fields.size("r", at_most=_MAX_RANK, default=8),
        alpha=fields.number("lora_alpha", default=8),
        ranks=_overrides(fields, "rank_pattern", lambda one, key: one.size(key, at_most=_MAX_RANK)),
        alphas=_overrides(fields, "alpha_pattern", lambda one, key: one.number(key)),
        is_rank_stabilised=fields.flag("use_rslora", default=False),
        is_dora=fields.flag("use_dora", default=False),
        keeps_tying=fields.flag("ensure_weight_tying", default=False),
    )


def _check_initialisation(value: Any, where: str) -> None:
    name = value.lower() if isinstance(value, str) else value
    if isinstance(name, str) and name.startswith(_CHANGED_BASE):
        raise AdapterError(
            f"{where}: init_lora_weights is {quoted(value, 40)}, which changes the base's weights too: {_CONVERT}"
        )
    if not any(name == plain and type(name) is type(plain) for plain in _PLAIN):
        raise AdapterError(f"{where}: init_lora_weights is {quoted(value, 40)}, which is unknown here: {_MERGE}")


def _overrides(fields: _Fields, name: str, value_of: Callable[[_Fields, str], float]) -> _Overrides:
    values = fields.values.get(name)
    if is_off(values):
        return _Overrides(())
    if not isinstance(values, dict) or len(values) > _MAX_PATTERNS:
        raise fields.error(name, "an object")
    within = _Fields(values, f"{fields.where}: {name}")
    entries = []
    for pattern in values:
        if not _PATTERN.fullmatch(pattern) or sum(map(pattern.count, "*+")) > _MAX_WILDCARDS:
            raise AdapterError(
                f"{fields.where}: the pattern {quoted(pattern, 60)} of {name} is more than names, dots, numbers and .*:"
                " write names of modules in its place"
            )
        entries.append((re.compile(rf"(.*\.)?({pattern})$"), value_of(within, pattern)))
    return _Overrides(tuple(entries))
