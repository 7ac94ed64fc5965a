"""compressed-tensors' quantization_config: groups of modules, each with its scheme of weights.

    pack-quantized                      X.weight_packed I32, X.weight_scale, X.weight_shape, X.weight_zero_point, _g_idx
    int-quantized, naive-quantized      X.weight I8, X.weight_scale, X.weight_zero_point
    float-quantized, naive-quantized    X.weight F8_E4M3, X.weight_scale
    nvfp4-pack-quantized                X.weight_packed U8, X.weight_scale F8_E4M3, X.weight_global_scale

The tensors of a module say which of these it has, and most of its scheme. Where the schemes of several groups fit them,
the targets decide as in compressed-tensors: a name comes before a pattern, and a pattern before a class. Activations
are not quantised by an export, so what a scheme says of them does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from qwonnx.export.checkpoint.config_fields import Fields
from qwonnx.export.checkpoint.formats.codes import StoredCodes
from qwonnx.export.checkpoint.formats.float8_config import FP8_BLOCK
from qwonnx.export.checkpoint.formats.format_fields import UNQUANTIZED, check_fields, choice, names
from qwonnx.export.checkpoint.formats.module_patterns import matches
from qwonnx.export.errors import ConfigError, TensorFormatError
from qwonnx.runtime.artifact.object_fields import CORRECT, is_off

_METHOD = "compressed-tensors"
_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mixed-precision",
)
_FIXED: Mapping[str, tuple[Any, ...]] = {"quantization_status": ("compressed", "frozen", None)}
_READ = frozenset({"config_groups", "format", "ignore", "sparsity_config"})
_IGNORED = frozenset({"dequantize", "global_compression_ratio", "kv_cache_scheme", "run_compressed", "version"})
_GROUP_READ = frozenset({"format", "targets", "weights"})
_GROUP_IGNORED = frozenset({"input_activations", "output_activations"})
_WEIGHTS_FIXED: Mapping[str, tuple[Any, ...]] = {"dynamic": (False, None)}
_WEIGHTS_READ = frozenset({"block_structure", "group_size", "num_bits", "strategy", "symmetric", "type"})
_WEIGHTS_IGNORED = frozenset({"actorder", "observer", "observer_kwargs", "scale_dtype", "zp_dtype"})
_MAX_GROUPS = 64
_MAX_GROUP_SIZE = 1 << 20
_CLASSES = ("Linear",)  # classes of modules whose weights are quantised here
_PATTERN = "re:"
FP4_GROUP = 16


class Kind(StrEnum):
    """What the numbers of a scheme are."""

    INTEGERS = "int"
    FLOAT8 = "fp8"
    NVFP4 = "nvfp4"


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights of a group are stored: bits and symmetry matter for integers, group_size None is a whole row."""

    kind: Kind
    bits: int
    symmetric: bool
    strategy: str
    group_size: int | None

    @property
    def name(self) -> str:
        return f"{self.kind.value}{self.bits}" if self.kind is Kind.INTEGERS else self.kind.value


@dataclass(frozen=True, slots=True)
class SchemeGroup:
    """A scheme and its targets: names of modules or of classes, and patterns after re:."""

    targets: tuple[str, ...]
    scheme: Scheme

    def rank(self, module: str) -> int | None:
        """How exactly the group names a module: 0 by name, 1 by a pattern, 2 by its class; None: not at all.

        Raises:
            ConfigError: a pattern may take long.
        """
        if module in self.targets:
            return 0
        if any(_is_match(target, module) for target in self.targets if target.startswith(_PATTERN)):
            return 1
        return 2 if any(target in _CLASSES for target in self.targets) else None


@dataclass(frozen=True, slots=True)
class CompressedFormat:
    """The groups of a checkpoint of compressed-tensors, and the modules that none of them quantises."""

    groups: tuple[SchemeGroup, ...]
    ignored: tuple[str, ...]

    @property
    def has_codes(self) -> bool:
        return any(group.scheme.kind is Kind.INTEGERS for group in self.groups)

    def check_patterns(self) -> None:
        """Refuse targets that cannot be tried on names; see SourceQuantization."""
        for target in (*self.ignored, *(target for group in self.groups for target in group.targets)):
            _is_match(target, "")

    @property
    def num_rules(self) -> int:
        return len(self.ignored) + sum(len(group.targets) for group in self.groups)

    @property
    def name(self) -> str:
        """The format's name in a manifest."""
        return f"{_METHOD}-{'+'.join(dict.fromkeys(group.scheme.name for group in self.groups))}"

    def foreseen_codes(self, module: str, num_columns: int) -> StoredCodes | None:
        """The codes of a linear module; see SourceQuantization."""
        if any(_is_match(name, module) for name in self.ignored):
            return None
        scheme = next((group.scheme for group in self._ranked(module)), None)
        if scheme is None or scheme.kind is not Kind.INTEGERS:
            return None
        return StoredCodes(scheme.bits, scheme.group_size or num_columns, not scheme.symmetric)

    def scheme(self, module: str, kind: Kind, fits: Callable[[Scheme], bool]) -> Scheme:
        """The scheme of a module that is stored as numbers of this kind.

        Args:
            module: its name in the checkpoint.
            kind: what its tensors are.
            fits: whether its tensors have the shapes of a scheme.

        Raises:
            TensorFormatError: no group has such a scheme.
            ConfigError: several have, and a pattern of their targets cannot be tried.
        """
        fitting = [group for group in self.groups if group.scheme.kind is kind and fits(group.scheme)]
        schemes = dict.fromkeys(group.scheme for group in fitting)
        if len(schemes) > 1:
            chosen = [group.scheme for group in self._ranked(module) if group in fitting]
            if chosen:
                return chosen[0]
        if not schemes:
            raise TensorFormatError(
                f"the tensors of {module} do not have the shapes of any group of config_groups in config.json:"
                f" {CORRECT}"
            )
        return next(iter(schemes))

    def _ranked(self, module: str) -> list[SchemeGroup]:
        """The groups that name a module, the most exact first."""
        ranks = [(group.rank(module), group) for group in self.groups]
        known = [(rank, group) for rank, group in ranks if rank is not None]
        return [group for _, group in sorted(known, key=lambda one: one[0])]


def parse_compressed(fields: Fields) -> CompressedFormat:
    """The format of a quantization_config of compressed-tensors.

    Raises:
        ConfigError: a format or scheme is not supported, or a field is malformed.
    """
    _check_format(fields)
    check_fields(fields, _METHOD, _FIXED, _READ | _IGNORED)
    sparsity = fields.values.get("sparsity_config")
    if not is_off(sparsity) and not (isinstance(sparsity, dict) and sparsity.get("format") == "dense"):
        raise ConfigError(f"{fields.where}: sparsity_config of {_METHOD} is not supported: {UNQUANTIZED}")
    groups = tuple(scheme_groups(fields, _METHOD))
    if not groups:
        raise ConfigError(f"{fields.where}: config_groups has no scheme of weights: {CORRECT}")
    return CompressedFormat(groups, names(fields, "ignore"))


def scheme_groups(fields: Fields, method: str) -> Iterator[SchemeGroup]:
    """The schemes of `config_groups`, which ModelOpt writes too.

    Raises:
        ConfigError: one is not supported, or malformed.
    """
    groups = fields.values.get("config_groups")
    if is_off(groups):
        return
    if not isinstance(groups, dict) or len(groups) > _MAX_GROUPS:
        raise fields.error("config_groups", "an object of groups")
    for name, values in groups.items():
        if not isinstance(values, dict):
            raise fields.error("config_groups", "an object of groups")
        group = Fields(values, f"{fields.where}: {str(name)[:60]}")
        _check_format(group)
        check_fields(group, method, {}, _GROUP_READ | _GROUP_IGNORED)
        weights = values.get("weights")
        if is_off(weights):
            continue  # of activations or of a cache only
        if not isinstance(weights, dict):
            raise group.error("weights", "an object")
        yield SchemeGroup(names(group, "targets"), _scheme(Fields(weights, group.where), method))


def _scheme(weights: Fields, method: str) -> Scheme:
    check_fields(weights, method, _WEIGHTS_FIXED, _WEIGHTS_READ | _WEIGHTS_IGNORED)
    symmetric = weights.flag("symmetric", default=True)
    group_size = weights.values.get("group_size")
    if group_size is not None and group_size != -1:
        group_size = weights.size("group_size", at_most=_MAX_GROUP_SIZE)
    else:
        group_size = None
    strategy = weights.values.get("strategy")
    if strategy is None:
        strategy = (
            "tensor" if weights.values.get("group_size") is None else "channel" if group_size is None else "group"
        )
    kind = weights.values.get("type", "int")
    if kind == "int":
        bits = choice(weights, method, "num_bits", (4, 8))
        # Zero points of a whole matrix are stored in another form.
        _check_strategy(weights, method, strategy, ("group", "channel", *(("tensor",) if symmetric else ())))
        return Scheme(Kind.INTEGERS, bits, symmetric, strategy, group_size if strategy == "group" else None)
    bits = choice(weights, method, "num_bits", (4, 8))
    if kind != "float" or not symmetric:
        raise ConfigError(
            f"{weights.where}: weights of type {str(kind)[:60]!r}{'' if symmetric else ', not symmetric,'} of {method}"
            f" are not supported: {UNQUANTIZED}"
        )
    if bits == 4:
        # ModelOpt leaves the strategy out.
        if group_size != FP4_GROUP or strategy not in ("tensor_group", "group"):
            raise ConfigError(
                f"{weights.where}: 4-bit floats of {method} in groups of {group_size} ({str(strategy)[:60]}) are not"
                f" supported, only NVFP4 with groups of {FP4_GROUP} is: {UNQUANTIZED}"
            )
        return Scheme(Kind.NVFP4, bits, symmetric, "tensor_group", group_size)
    _check_strategy(weights, method, strategy, ("channel", "tensor", "block"))
    block = weights.values.get("block_structure")
    if strategy == "block" and block not in ([FP8_BLOCK, FP8_BLOCK], f"{FP8_BLOCK}x{FP8_BLOCK}"):
        raise ConfigError(
            f"{weights.where}: block_structure {str(block)[:60]} of {method} is not supported, only"
            f" {[FP8_BLOCK, FP8_BLOCK]} is: {UNQUANTIZED}"
        )
    return Scheme(Kind.FLOAT8, bits, symmetric, strategy, None)


def _check_strategy(weights: Fields, method: str, strategy: Any, allowed: tuple[str, ...]) -> None:
    if strategy not in allowed:
        raise ConfigError(
            f"{weights.where}: strategy {str(strategy)[:60]!r} of {method} is not supported for these weights, only"
            f" {', '.join(allowed)}: {UNQUANTIZED}"
        )


def _check_format(fields: Fields) -> None:
    value = fields.values.get("format")
    if value is not None and value not in _FORMATS:
        raise ConfigError(
            f"{fields.where}: format {str(value)[:60]!r} of {_METHOD} is not supported, only {', '.join(_FORMATS)}:"
            f" {UNQUANTIZED}"
        )


def _is_match(target: str, module: str) -> bool:
    """Whether a name or a pattern of a list is a module's; a class is not."""
    if target.startswith(_PATTERN):
        return matches(target.removeprefix(_PATTERN), module, "targets or ignore")
    return target == module
