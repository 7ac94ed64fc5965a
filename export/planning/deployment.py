"""Whether a model fits a machine or a card, and up to which context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.planning.machines import DeploymentTarget
from qwonnx.export.planning.memory import memory_of
from qwonnx.export.planning.resident_memory import Serving
from qwonnx.export.planning.states import StateSizes
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


def deployment(
    config: ModelConfig, model: StoredModel, states: StateSizes, target: DeploymentTarget, serving: Serving
) -> Deployment:
    """Check one target; see Deployment."""

    def needs(context: int) -> int:
        return memory_of(config, model, states, replace(serving, context=context)).required

    missing_disk = max(0, model.artifact.num_bytes - target.disk) if target.disk is not None else 0
    return Deployment(
        target=target,
        missing_memory=max(0, needs(serving.context) - target.memory),
        missing_disk=missing_disk,
        largest_context=0 if missing_disk else longest_context(needs, target.memory, config.max_position_embeddings),
    )


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
