"""Finds the recipe, block size and type of keys and values that fit limits of memory and disk.

Candidates are ranked by rounding error: the mean squared error of rounding the weights, relative to their variance,
plus that of keys and values. This does not predict a model's loss; `qwonnx verify` measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.errors import PlanError
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.planning.artifact_size import CopiedFiles
from qwonnx.export.planning.deployment import longest_context
from qwonnx.export.planning.machines import PLATFORMS, DeploymentTarget
from qwonnx.export.planning.memory import memory_of
from qwonnx.export.planning.plan import Assumptions, store_models
from qwonnx.export.planning.resident_memory import MemoryUse, Serving
from qwonnx.export.planning.states import state_sizes
from qwonnx.export.planning.stored_model import NamedRecipe, StoredModel
from qwonnx.runtime.errors import QuantityError
from qwonnx.runtime.quantities import parse_bytes, parse_count, parse_tokens

# Squared error of rounding normal values by quantize_blocks, over their variance, measured as in docs/plan.md.
ROUNDING_ERROR = {
    (8, 16): 2.2e-5,
    (8, 32): 2.9e-5,
    (8, 64): 3.5e-5,
    (8, 128): 4.2e-5,
    (8, 256): 4.9e-5,
    (4, 16): 0.0058,
    (4, 32): 0.0074,
    (4, 64): 0.0090,
    (4, 128): 0.0106,
    (4, 256): 0.0123,
}
# Keys and values have fixed scales for all tokens, as if their blocks were wide.
_KV_ERROR = {
    KvType.FLOAT32: 0.0,
    KvType.FLOAT16: 0.0,
    KvType.BFLOAT16: 0.0,
    KvType.INT8: 1e-4,
    KvType.FLOAT8: 1e-3,
    KvType.INT4: 0.02,
}

MAX_SEQUENCES = 1024
_KEYS = ("memory", "disk", "context", "sequences", "platform")
_UNLIMITED = 1 << 62


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits in bytes and tokens; None: no limit. context is that of each sequence. disk is for the artifact.

    platform: the machine whose memory and disk they are, or None.
    """

    memory: int | None
    disk: int | None
    context: int
    sequences: int
    platform: DeploymentTarget | None = None


def parse_limits(text: str, context: int, sequences: int) -> Limits:
    """Parse limits such as "memory=10GB,disk=10GB,context=32k,sequences=4" or "platform=lambda,memory=4GiB".

    Args:
        text: keys in any order, each at most once; platform, memory or disk must be among them. With a platform, memory
            and disk may name less than its largest.
        context, sequences: the defaults.

    Raises:
        PlanError: a key is unknown or given twice, platform, memory and disk are missing, a value is malformed, or more
            than the platform has.
    """
    given: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in _KEYS or not equals:
            raise PlanError(
                f"--fit has {part[:40]!r}: give memory=10GB, disk=10GB, context=32k, sequences=4 or platform=lambda"
            )
        if key in given:
            raise PlanError(f"--fit has {key} twice: give it once")
        given[key] = value
    if not given.keys() & {"memory", "disk", "platform"}:
        raise PlanError("--fit names neither memory nor disk nor platform: give one, as in memory=10GB")
    platform = PLATFORMS.get(given["platform"]) if "platform" in given else None
    if platform is None and "platform" in given:
        raise PlanError(f"platform is {given['platform'][:40]!r}: use one of {', '.join(PLATFORMS)}")
    most = MAX_SEQUENCES
    try:
        return Limits(
            memory=_least("memory", given, platform, platform.memory if platform else None),
            disk=_least("disk", given, platform, platform.disk if platform else None),
            context=parse_tokens(given["context"], "context") if "context" in given else context,
            sequences=parse_count(given["sequences"], "sequences", most) if "sequences" in given else sequences,
            platform=platform,
        )
    except QuantityError as error:
        raise PlanError(str(error)) from error


def _least(key: str, given: Mapping[str, str], platform: DeploymentTarget | None, limit: int | None) -> int | None:
    """The bytes that are given, else the platform's limit, else None."""
    if key not in given:
        return limit
    wanted = parse_bytes(given[key], key)
    if platform is not None and limit is not None and wanted > limit:
        raise PlanError(
            f"{key} is {given[key][:40]!r}, and {platform.name} has {limit} bytes at most: give less, or none"
        )
    return wanted


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to store and serve the model, measured against limits."""

    model: StoredModel
    kv: KvType
    rounding_error: float
    memory: int  # bytes that are needed at the limits' context and sequences
    mapped: int  # of them, weights that are read where the artifact's files are mapped
    disk: int
    missing_memory: int
    missing_disk: int
    largest_context: int  # that fits with the limits' sequences, or 0
    largest_sequences: int  # that fit at the limits' context, or 0

    @property
    def fits(self) -> bool:
        return not (self.missing_memory or self.missing_disk)


@dataclass(frozen=True, slots=True)
class Fit:
    """All candidates, by rounding error."""

    limits: Limits
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate | None:
        """The first that fits."""
        return next((candidate for candidate in self.candidates if candidate.fits), None)

    @property
    def nearest(self) -> Candidate:
        """If no candidate fits, the one that lacks least: disk comes first, because only fewer bits save disk."""
        return min(self.candidates, key=lambda each: (each.missing_disk, each.missing_memory, each.rounding_error))


def find_fit(
    config: ModelConfig,
    recipes: Sequence[NamedRecipe],
    kv_types: Sequence[KvType],
    limits: Limits,
    assumptions: Assumptions,
    copied: CopiedFiles,
) -> Fit:
    """Check every recipe with every type of keys and values.

    Raises:
        RecipeError: none of the recipes can be applied to the model.
    """
    models, _ = store_models(config, recipes, assumptions, copied)
    candidates = (_candidate(config, model, kv, limits, assumptions.serving) for model in models for kv in kv_types)
    return Fit(limits, tuple(sorted(candidates, key=lambda each: (each.rounding_error, each.memory))))


def _candidate(config: ModelConfig, model: StoredModel, kv: KvType, limits: Limits, serving: Serving) -> Candidate:
    states = state_sizes(config, model.choice.state_layout)
    wanted = replace(serving, kv=kv, context=limits.context, sequences=limits.sequences)

    def needs(context: int, sequences: int) -> int:
        changed = replace(wanted, context=context, sequences=sequences)
        return memory_of(config, model, states, changed).required

    use = memory_of(config, model, states, wanted)
    memory, disk = use.required, model.artifact.num_bytes
    allowed = _UNLIMITED if limits.memory is None else limits.memory
    missing_disk = max(0, disk - limits.disk) if limits.disk is not None else 0
    limit = max(config.max_position_embeddings, limits.context)
    return Candidate(
        model=model,
        kv=kv,
        rounding_error=rounding_error(model) + _KV_ERROR[kv],
        memory=memory,
        mapped=use.mapped_weights if isinstance(use, MemoryUse) else 0,
        disk=disk,
        missing_memory=0 if limits.memory is None else max(0, memory - limits.memory),
        missing_disk=missing_disk,
        largest_context=longest_context(lambda context: needs(context, limits.sequences), allowed, limit),
        largest_sequences=_most(lambda count: needs(limits.context, count) <= allowed),
    )


def rounding_error(model: StoredModel) -> float:
    """Mean rounding error over the parameters."""
    lost = sum(
        weight.num_parameters * ROUNDING_ERROR[weight.storage.bits, weight.storage.block_size]
        for weight in model.weights
        if weight.storage.is_quantized
    )
    return lost / model.num_parameters


def _most(fits: Callable[[int], bool]) -> int:
    """The largest count up to MAX_SEQUENCES that fits, or 0. Assumes that all smaller counts fit as well."""
    low, high = 0, MAX_SEQUENCES + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
