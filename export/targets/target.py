"""A target: what a graph can be lowered to, as one record, and the choice of an export among what it offers.

Everything that a target decides is asked of its record: what the command line offers, what is refused, how the graph is
lowered, which weights it joins, what becomes of them in memory, what the manifest says. Nothing here imports torch or
onnx: a record's lower() does, when it is called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.quantization.recipe import DEFAULT_RECIPE
from qwonnx.export.weight_files.weight_item import WeightItem

if TYPE_CHECKING:  # pulls in torch
    import onnx_ir as ir

    from qwonnx.export.lowering.graph_weights import GraphWeights


class Activations(StrEnum):
    """What kernels compute with: activations as they are, or quantised on the fly."""

    INT8 = "int8"
    FLOAT32 = "float32"


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """Bytes of weights once a session is open.

    packed cannot be dropped; mapped is read from the page cache at every step; read_once was read to be packed and can
    be dropped; on_demand is the embedding, of which a token reads a row. scratch is the largest matrix that a kernel
    expands to float32 while it runs.
    """

    packed: int = 0
    mapped: int = 0
    read_once: int = 0
    on_demand: int = 0
    scratch: int = 0

    def __add__(self, other: LoadedWeights) -> LoadedWeights:
        return LoadedWeights(
            self.packed + other.packed,
            self.mapped + other.mapped,
            self.read_once + other.read_once,
            self.on_demand + other.on_demand,
            max(self.scratch, other.scratch),
        )


class Target(ABC):
    """One target. A subclass says everything; register.py lists it.

    Attributes:
        name: on the command line and in the manifest.
        summary: what it is, in a few words, for --help.
        activations: that its kernels offer, the default first.
        kv_types: that its attention takes, the default first.
        default_recipe: what int4 means when no recipe is named.
        minimum_onnxruntime: the release in which its kernels first came together.
        providers: ONNX Runtime's execution providers that its graphs run on, the usual one first.
        graph_bytes: of a graph without layers, measured: for plans that do not trace.
        note: what a plan must say of its estimates, if anything.
    """

    name: str
    summary: str
    activations: tuple[Activations, ...]
    kv_types: tuple[KvType, ...]
    default_recipe: str = DEFAULT_RECIPE
    minimum_onnxruntime: str
    providers: tuple[str, ...]
    graph_bytes: int
    note: str | None = None

    @abstractmethod
    def lower(self, model: ir.Model, weights: GraphWeights, activations: Activations) -> None:
        """Lower a traced model in place.

        Args:
            model: as traced; its cache is lowered already.
            weights: the table of its weights, which follows what is done to them.
            activations: one of those that the target offers.

        Raises:
            RecipeError: the storages of the weights cannot be met.
        """

    def join(self, config: ModelConfig, items: Sequence[WeightItem], activations: Activations) -> Sequence[WeightItem]:
        """What lower() makes of a model's weights, for a plan that does not trace; by default nothing is joined.

        Args:
            config: the model.
            items: one a weight, in the order in which the modules register them.
            activations: as of lower().
        """
        return items

    @abstractmethod
    def load(self, item: WeightItem, items: Sequence[WeightItem], activations: Activations) -> LoadedWeights:
        """What becomes of a projection or of experts when a session loads them among all `items`."""


@dataclass(frozen=True, slots=True)
class TargetChoice:
    """What a graph is lowered to: a target, and what is chosen of what it offers.

    kv is how keys and values are cached. Everything that depends on the three takes this one value.
    """

    target: Target
    activations: Activations
    kv: KvType

    def described(self) -> dict[str, str]:
        """The choice as names, for what is compared or read by people."""
        return {"target": self.target.name, "activations": self.activations.value, "kv": self.kv.value}
