"""Whether a model fits a deployment target, and up to which context.

For accelerators this assumes that kernels use the stored weights, that the layers are divided evenly, and that every
device has the intermediates of a whole step. No target of this version runs on accelerators: these are only sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.planning.machines import DeploymentTarget
from qwonnx.export.planning.resident_memory import Serving, held_values, memory_use
from qwonnx.export.planning.states import StateSizes, state_sizes
from qwonnx.export.planning.stored_model import StoredModel

_STEP = 1 << 10  # contexts are multiples of 1024


@dataclass(frozen=True, slots=True)
class Deployment:
    """Whether a model fits one target, at the requested context.

    missing_memory and missing_disk are bytes, 0 if there is room. largest_context is the longest that fits, up to the
    model's own limit; 0 if no context fits.
    """

    target: DeploymentTarget
    missing_memory: int
    missing_disk: int
    largest_context: int

    @property
    def fits(self) -> bool:
        return not (self.missing_memory or self.missing_disk)


def deployment(config: ModelConfig, model: StoredModel, target: DeploymentTarget, serving: Serving) -> Deployment:
    """Check one target; see Deployment."""
    states = state_sizes(config)

    def needs(context: int) -> int:
        return needed_memory(config, model, states, target, replace(serving, context=context))

    missing_disk = max(0, model.artifact.num_bytes - target.disk) if target.disk is not None else 0
    return Deployment(
        target=target,
        missing_memory=max(0, needs(serving.context) - target.memory),
        missing_disk=missing_disk,
        largest_context=0 if missing_disk else longest_context(needs, target.memory, config.max_position_embeddings),
    )


def needed_memory(
    config: ModelConfig, model: StoredModel, states: StateSizes, target: DeploymentTarget, serving: Serving
) -> int:
    """Bytes that are needed, of main memory or of each device."""
    use = memory_use(config, model.loaded, states, model.artifact.tokenizer_bytes, serving)
    if not target.num_devices:
        return use.required
    shared = model.num_bytes + use.kv + use.states
    intermediates = 4 * held_values(config) * max(serving.sequences, min(serving.chunk_tokens, serving.context))
    return -(-shared // target.num_devices) + intermediates


def longest_context(needs: Callable[[int], int], memory: int, limit: int) -> int:
    """The longest context that fits, in steps of 1024 up to the limit; 0 if no context fits.

    Assumes that the need of memory grows with the context.
    """
    if needs(limit) <= memory:
        return limit
    low, high = 0, -(-limit // _STEP)  # in steps: low fits or is 0, high does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needs(middle * _STEP) <= memory else (low, middle)
    return low * _STEP
