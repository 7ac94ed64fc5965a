"""What adapters change in a checkpoint, by stored weight: which is all that they have, or an error.

If the base ties the head to the embedding and an adapter trains one of them, they part, as they did while the adapter
was trained, unless it kept them tied (ensure_weight_tying).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qwonnx.export.adapters.adapter import Adapter, LoraModule, unused
from qwonnx.export.adapters.changes import LowRank
from qwonnx.export.adapters.expert_pairs import ExpertPair, Order, expert_pairs, order_of
from qwonnx.export.adapters.factors import Factor
from qwonnx.export.adapters.targets import Target, Targets
from qwonnx.export.adapters.whole_tensors import RowsOfWeight, whole_tensor
from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.formats.stored_weights import CheckpointWeights, StoredWeight
from qwonnx.export.checkpoint.weight_names import EMBEDDING, HEAD, ExpertTensor
from qwonnx.runtime.adapters.tensor_names import Part
from qwonnx.runtime.artifact.manifest import AdapterFacts

_EMBEDDING_MODULE, _HEAD_MODULE = EMBEDDING.removesuffix(".weight"), HEAD.removesuffix(".weight")


@dataclass(frozen=True, slots=True)
class EmbeddingDora:
    """A product whose sum with the weight is scaled by columns, to the lengths of the tensor `magnitude`."""

    product: LowRank
    magnitude: str


@dataclass(slots=True)
class Edit:
    """What adapters do to one stored weight: take another in its place, and change that."""

    replacement: StoredWeight | None = None
    changes: list[LowRank | EmbeddingDora] = field(default_factory=list)


@dataclass(slots=True)
class Edits:
    """All edits, by stored name.

    decoded are weights without an edit that are read as floats, because a kernel takes them with others that have one.
    parts_head: the head gets a weight of its own, made of the tied embedding.
    """

    embedding: str  # the stored name
    parts_head: bool
    facts: tuple[AdapterFacts, ...] = ()  # of each adapter, for the manifest
    of_weights: dict[str, Edit] = field(default_factory=dict)
    decoded: set[str] = field(default_factory=set)


def edits_of(base: CheckpointWeights, config: ModelConfig, adapters: Sequence[Adapter]) -> Edits:
    """The edits of adapters that are merged one after the other.

    Raises:
        AdapterError: a tensor of an adapter changes nothing in the base, or has another shape than its weight.
    """
    targets = Targets(base, config)
    parts = config.tie_word_embeddings and any(
        _trains(adapter, HEAD) or (_trains(adapter, EMBEDDING) and not adapter.config.keeps_tying)
        for adapter in adapters
    )
    edits = Edits(targets.embedding, parts)
    edits.facts = tuple(_Merge(base, config, adapter, targets, edits).add() for adapter in adapters)
    for stored in list(edits.of_weights):
        edits.decoded.update(targets.fellows(stored))
    return edits


def _trains(adapter: Adapter, ours: str) -> bool:
    module = ours.removesuffix(".weight")
    return ours in adapter.wholes or any(one.ours == module for one in adapter.modules)


class _Merge:
    """Adds the edits of one adapter."""

    def __init__(
        self, base: CheckpointWeights, config: ModelConfig, adapter: Adapter, targets: Targets, edits: Edits
    ) -> None:
        self._base, self._config, self._adapter = base, config, adapter
        self._targets, self._edits = targets, edits
        self._ranks: set[int] = set()
        self._scalings: set[float] = set()

    def add(self) -> AdapterFacts:
        for ours, name in self._adapter.wholes.items():
            for stored, weight in self._replacements(ours, name):
                self._edits.of_weights[stored] = Edit(weight)
        pairs = expert_pairs(self._adapter, self._config)
        if pairs:
            order = order_of(self._adapter, pairs)
            for pair in pairs:
                self._add_experts(pair, order)
        for module in self._adapter.modules:
            if module.ours == _EMBEDDING_MODULE:
                self._add_embedding(module)
            elif not module.is_experts:
                self._add_matrix(module)
        return AdapterFacts(
            name=self._adapter.name,
            sha256=self._adapter.sha256,
            kind="dora" if self._adapter.config.is_dora else "lora",
            rank=_range(self._ranks),
            scaling=_range(self._scalings),
        )

    def _replacements(self, ours: str, name: str) -> Iterator[tuple[str, StoredWeight]]:
        """The stored weights that a whole tensor replaces, each with its values."""
        experts, stored = ExpertTensor.of(ours), self._targets.stored(ours)
        if experts is not None and stored not in self._base.names:
            targets = list(self._targets.experts(experts.prefix.removesuffix("."), experts.part))
            if not targets:
                raise unused(self._adapter.path, name)
            rows, columns = self._targets.expert_shape(experts.part)
            weight = whole_tensor(self._adapter, name, (self._config.num_experts, rows, columns))
            for target in targets:
                yield target.stored, RowsOfWeight(weight, target.expert * rows + target.row, target.num_rows)
        else:
            for place in self._places(ours, name):
                yield place, whole_tensor(self._adapter, name, self._shape(place))

    def _add_experts(self, pair: ExpertPair, order: Order) -> None:
        targets = list(self._targets.experts(pair.module.ours, pair.parameter))
        if not targets:
            raise unused(self._adapter.path, pair.module.shown)
        for target in targets:
            left, right = pair.factors(order, target.expert)
            self._change(target.stored, LowRank(left, right, pair.scaling, target, pair.num_columns))

    def _add_matrix(self, module: LoraModule) -> None:
        """A linear module, or one expert's."""
        if module.is_embedding or module.depth:
            raise unused(self._adapter.path, module.shown)
        if module.ours == _HEAD_MODULE:
            stored, (rows, columns) = self._places(HEAD, module.shown)[0], self._shape(HEAD)
            target = Target(stored, 0, rows)
        else:
            found = self._targets.matrix(module.ours)
            if found is None:
                raise unused(self._adapter.path, module.shown)
            target, columns = found
        rank = self._adapter.config.rank_of(module.name)
        a = self._factor(module, Part.A, (rank, columns), is_rank_first=True)
        b = self._factor(module, Part.B, (target.num_rows, rank), is_rank_first=False)
        scaling = self._adapter.config.scaling_of(module.name)
        magnitude = self._magnitude(module, target.num_rows)
        self._change(target.stored, LowRank(b, a, scaling, target, columns, magnitude))

    def _add_embedding(self, module: LoraModule) -> None:
        if not module.is_embedding or module.depth:
            raise unused(self._adapter.path, module.shown)
        rows, columns = self._shape(self._targets.embedding)
        rank = self._adapter.config.rank_of(module.name)
        a = self._factor(module, Part.EMBEDDING_A, (rank, rows), is_rank_first=True)
        b = self._factor(module, Part.EMBEDDING_B, (columns, rank), is_rank_first=False)
        scaling = self._adapter.config.scaling_of(module.name)
        magnitude = self._magnitude(module, columns)
        for place in self._places(EMBEDDING, module.shown):
            product = LowRank(a, b, scaling, Target(place, 0, rows), columns)
            self._change(place, product if magnitude is None else EmbeddingDora(product, magnitude))

    def _places(self, ours: str, name: str) -> list[str]:
        """The stored weights of one of ours: the head too, where it parts from the embedding and follows it."""
        stored = self._targets.stored(ours)
        tied_head = ours == HEAD and self._edits.parts_head
        if stored not in self._base.names and not tied_head:
            raise unused(self._adapter.path, name)
        follows = self._adapter.config.keeps_tying and not _trains(self._adapter, HEAD)
        return [stored, HEAD] if ours == EMBEDDING and self._edits.parts_head and follows else [stored]

    def _shape(self, stored: str) -> tuple[int, ...]:
        tied_head = stored == HEAD and self._edits.parts_head
        return self._base.shape(self._targets.embedding if tied_head else stored)

    def _factor(self, module: LoraModule, part: Part, shape: tuple[int, int], *, is_rank_first: bool) -> Factor:
        name = module.parts.get(part)
        if name is None:
            raise unused(self._adapter.path, module.shown)
        self._adapter.expect(name, shape)
        return Factor(self._adapter.tensors, name, shape[0 if is_rank_first else 1], is_rank_first)

    def _magnitude(self, module: LoraModule, length: int) -> str | None:
        name = module.parts.get(Part.MAGNITUDE)
        if name is not None:
            self._adapter.expect(name, (length,))
        return name

    def _change(self, stored: str, change: LowRank | EmbeddingDora) -> None:
        self._edits.of_weights.setdefault(stored, Edit()).changes.append(change)
        product = change.product if isinstance(change, EmbeddingDora) else change
        self._ranks.add(product.left.rank)
        self._scalings.add(product.scaling)


def _range(values: set[int] | set[float]) -> str:
    """One number, or the smallest and the largest."""
    if not values:
        return "none"
    low, high = f"{min(values):g}", f"{max(values):g}"
    return low if low == high else f"{low} to {high}"
