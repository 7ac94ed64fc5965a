"""The record of a target, and the choice of an export from what it offers.

A record decides the options of the command line, refusals, the lowering of a graph, joined weights, their memory, and
entries of the manifest. Nothing here imports torch or onnx: a record's lower() does, when it is called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.modeling.cache_spec import AS_TRACED, KvType, StateLayout
from qwonnx.export.quantization.recipe import DEFAULT_RECIPE, FloatType, Storages
from qwonnx.export.weight_files.weight_item import WeightItem
from qwonnx.runtime.artifact.manifest import StateSpec, TensorSpec

if TYPE_CHECKING:  # pulls in torch
    import onnx_ir as ir

    from qwonnx.export.lowering.graph_weights import GraphWeights


class Activations(StrEnum):
    """The activations that kernels compute with: quantised on the fly, or unchanged."""

    INT8 = "int8"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def floats(self) -> FloatType:
        """The type of a graph's floats, and so of its weights and scales."""
        return FloatType.FLOAT32 if self is Activations.INT8 else FloatType(self.value)


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """Bytes of weights in an open session.

    packed cannot be dropped; mapped is read from the page cache at every step; read_once was read to be packed and can
    be dropped; on_demand is the embedding: a token reads one row. scratch is what kernels take beside activations while
    they run, such as the largest matrix that one expands to float32; loading is taken, and given back, before.
    """

    packed: int = 0
    mapped: int = 0
    read_once: int = 0
    on_demand: int = 0
    scratch: int = 0
    loading: int = 0

    def __add__(self, other: LoadedWeights) -> LoadedWeights:
        return LoadedWeights(
            self.packed + other.packed,
            self.mapped + other.mapped,
            self.read_once + other.read_once,
            self.on_demand + other.on_demand,
            max(self.scratch, other.scratch),
            max(self.loading, other.loading),
        )


@dataclass(frozen=True, slots=True)
class LoweringFacts:
    """What a lowering may need beside the graph: the model, and the states that the target wants."""

    config: ModelConfig
    states: tuple[StateSpec, ...]


class Target(ABC):
    """One target. A subclass sets all attributes; register.py lists it.

    Attributes:
        name: on the command line and in the manifest.
        summary: a few words for --help.
        activations: that its kernels offer, the default first.
        kv_types: that its attention takes, the default first; see kv_types_with().
        default_recipe: the recipe of int4 if no recipe is named.
        minimum_onnxruntime: the first release with all its kernels.
        providers: ONNX Runtime's execution providers that its graphs run on, the usual one first.
        state_layout: of the states of linear attention; see state_layout_with().
        on_device: weights and states lie in the memory of a device, as one process has it.
        is_planned: whether a plan knows what lower() joins and stores.
        has_stages: whether its graphs can be cut into stages, with a hidden state of float32 between them.
        has_adapter_slots: whether its graphs can take adapters while they run.
        graph_bytes: of a graph without layers, measured, for plans without a trace.
        note: a note of plans about its estimates, if any.
    """

    name: str
    summary: str
    activations: tuple[Activations, ...]
    kv_types: tuple[KvType, ...]
    default_recipe: str = DEFAULT_RECIPE
    minimum_onnxruntime: str
    providers: tuple[str, ...]
    state_layout: StateLayout = AS_TRACED
    on_device: bool = False
    is_planned: bool = True
    has_stages: bool = False
    has_adapter_slots: bool = False
    graph_bytes: int
    note: str | None = None

    @abstractmethod
    def lower(self, model: ir.Model, weights: GraphWeights, activations: Activations, facts: LoweringFacts) -> None:
        """Lower a traced model in place.

        Args:
            model: as traced; its cache is lowered already.
            weights: the table of its weights; lower() keeps it up to date.
            activations: one of those that the target offers.
            facts: of the model.

        Raises:
            RecipeError: the target cannot use weights that are stored so.
        """

    def kv_types_with(self, activations: Activations) -> tuple[KvType, ...]:
        """Those of kv_types that its attention takes beside such activations, the default first."""
        return self.kv_types

    def state_layout_with(self, activations: Activations) -> StateLayout:
        """The states of linear attention beside such activations."""
        return self.state_layout

    def inputs(self, traced: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The inputs of a lowered graph other than the states, from those of the traced one."""
        return tuple(traced)

    def outputs(self, traced: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The outputs of a lowered graph other than the states, from those of the traced one."""
        return tuple(traced)

    def native_operators(self) -> Collection[str]:
        """The operators of `ai.qwonnx` that native kernels may run in its graphs; by default none.

        lower() adds a function of each name, with a body for sessions without the native library.
        """
        return ()

    def join(
        self, config: ModelConfig, items: Sequence[WeightItem], storages: Storages, activations: Activations
    ) -> Sequence[WeightItem]:
        """A model's weights as lower() joins and stores them, for a plan without a trace; by default as they are.

        Args:
            config: the model.
            items: one for each weight, in the order in which the modules register them.
            storages: that decided the items' storages.
            activations: as of lower().
        """
        return items

    def constant_bytes(self, config: ModelConfig) -> int:
        """Bytes of large constants in a lowered graph, for plans; by default there are none."""
        return 0

    @abstractmethod
    def load(self, items: Sequence[WeightItem], activations: Activations, *, native: bool) -> LoadedWeights:
        """Memory of a model's projections and experts, together, when a session loads them.

        Args:
            items: the weights.
            activations: as of lower().
            native: whether native kernels run its native_operators().
        """


@dataclass(frozen=True, slots=True)
class TargetChoice:
    """A target, and the chosen types of its activations and of cached keys and values (kv).

    Code that depends on the three takes this one value.
    """

    target: Target
    activations: Activations
    kv: KvType

    @property
    def state_layout(self) -> StateLayout:
        """Of the states of linear attention."""
        return self.target.state_layout_with(self.activations)

    def described(self) -> dict[str, str]:
        """The choice as names, for comparison and display."""
        return {"target": self.target.name, "activations": self.activations.value, "kv": self.kv.value}
