"""A checkpoint's weights with adapters merged into them, by the checkpoint's own names.

It stands where StoredWeights stands: WeightSource transforms what it gives, and nothing after that knows of adapters.
Adapters are merged in their order, each as if the one before it had been merged and saved (edits.py).
"""

from __future__ import annotations

from collections.abc import KeysView, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qwonnx.export.adapters.adapter import Adapter
from qwonnx.export.adapters.changes import Change, ScaledColumns
from qwonnx.export.adapters.edits import Edits, EmbeddingDora, edits_of
from qwonnx.export.checkpoint.checkpoint import TensorInfo
from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.formats.stored_weights import CheckpointWeights, StoredWeight
from qwonnx.export.checkpoint.weight_names import HEAD

if TYPE_CHECKING:
    from torch import Tensor

_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class AdaptedWeight:
    """A weight and what adapters change in it. It is read as floats, whatever the base stores."""

    codes: ClassVar[None] = None
    base: StoredWeight
    changes: tuple[Change, ...]

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def num_rows(self) -> int:
        return self.base.num_rows

    @property
    def num_columns(self) -> int:
        return self.base.num_columns

    @property
    def num_bytes(self) -> int:
        return self.base.num_bytes

    @property
    def reading_bytes(self) -> int:
        return self.base.reading_bytes + max((change.reading_bytes for change in self.changes), default=0)

    @property
    def reading_bytes_per_value(self) -> int:
        return self.base.reading_bytes_per_value + _FLOAT32_BYTES

    def read(self, start: int, count: int) -> Tensor:
        """Rows as float32 [count, num_columns], in a fresh buffer."""
        values = self.base.read(start, count).float()
        for change in self.changes:
            change.apply(values, start)
        return values

    def read_part(self, row: int, first_column: int, num_columns: int) -> Tensor:
        """Some columns [1, num_columns] of one row. The whole row is read: lengths of rows need it."""
        return self.read(row, 1)[:, first_column : first_column + num_columns]


class AdaptedWeights:
    """A checkpoint's weights after its adapters.

    Args:
        base: the checkpoint's own.
        config: of the base.
        adapters: in the order in which they are merged.

    Raises:
        AdapterError: a tensor of an adapter changes nothing in the base, or has another shape than its weight.
    """

    def __init__(self, base: CheckpointWeights, config: ModelConfig, adapters: Sequence[Adapter]) -> None:
        self._base = base
        self.edits: Edits = edits_of(base, config, adapters)
        self._names = dict.fromkeys(base.names)
        if self.edits.parts_head:
            self._names[HEAD] = None
        elif config.tie_word_embeddings and self.edits.embedding in self.edits.of_weights:
            self._names.pop(HEAD, None)  # a copy of the embedding as it was

    @property
    def names(self) -> KeysView[str]:
        return self._names.keys()

    def tensors(self, name: str) -> tuple[TensorInfo, ...]:
        """The base's tensors that store a weight; none for a head that parts from the embedding."""
        return self._base.tensors(name) if name in self._base.names else ()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(self._origin(name))

    def open(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        """Open a weight, which must have this shape; raises as the base does."""
        edit = self.edits.of_weights.get(name)
        if edit is not None and edit.replacement is not None:
            weight = edit.replacement
        else:
            weight = self._base.open(self._origin(name), shape)
        if edit is None:
            return AdaptedWeight(weight, ()) if name in self.edits.decoded else weight
        changes: list[Change] = []
        for change in edit.changes:
            if isinstance(change, EmbeddingDora):
                changes.append(ScaledColumns(change.product, change.magnitude, AdaptedWeight(weight, tuple(changes))))
            else:
                changes.append(change)
        return AdaptedWeight(weight, tuple(changes)) if changes else weight

    @property
    def lost_codes(self) -> tuple[str, ...]:
        """Names of the weights that the base has as codes, and that are floats now."""
        changed = [name for name in (*self.edits.of_weights, *sorted(self.edits.decoded)) if name in self._base.names]
        opened = {name: self._base.open(name, self._base.shape(name)) for name in dict.fromkeys(changed)}
        return tuple(name for name, weight in opened.items() if weight.codes is not None)

    def _origin(self, name: str) -> str:
        """The base's weight that a weight is made of."""
        return self.edits.embedding if name == HEAD and self.edits.parts_head else name
