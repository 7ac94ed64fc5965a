"""The weights of a graph's initializers, and how each is stored.

A traced graph has one initializer for each weight, under the weight's own name. Lowering may join several into one and
replace floats by codes and scales. This table records the changes, so that the weight stage knows what to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from qwonnx.export.checkpoint.weight_part import Form, WeightPart
from qwonnx.export.errors import RecipeError
from qwonnx.export.lowering.rewrite import sizes
from qwonnx.export.quantization.recipe import BFLOAT16, FLOAT32, FloatType, Storages, WeightStorage
from qwonnx.export.weight_files.layout import ExternalTensor
from qwonnx.export.weight_files.weight_item import (
    CODES,
    SCALES,
    ZERO_POINTS,
    WeightItem,
)

_TYPES = {
    FloatType.FLOAT32: ir.DataType.FLOAT,
    FloatType.FLOAT16: ir.DataType.FLOAT16,
    FloatType.BFLOAT16: ir.DataType.BFLOAT16,
}


@dataclass(slots=True)
class GraphWeights:
    """The weight table of one graph that is being lowered."""

    graph: ir.Graph
    storages: Storages
    # initializer name -> the checkpoint's weights that are joined in it along their rows
    parts: dict[str, tuple[WeightPart, ...]] = field(default_factory=dict)
    quantized: dict[str, WeightStorage] = field(default_factory=dict)
    # initializer name -> its type of floats, if that is not the one of the graph's arithmetic
    floats: dict[str, WeightStorage] = field(default_factory=dict)
    # initializer name -> the one whose bytes it shares under another shape
    aliases: dict[str, str] = field(default_factory=dict)

    # the type of the graph's arithmetic, and so of all floats but those of `floats`
    type: FloatType = FloatType.FLOAT32

    @classmethod
    def of_traced(
        cls,
        graph: ir.Graph,
        storages: Storages,
        tied: Mapping[str, str],
        type: FloatType = FloatType.FLOAT32,
    ) -> GraphWeights:
        """The table of a traced graph: one weight for each initializer, except tied ones."""
        weights = cls(graph, storages, type=type)
        for name, value in graph.initializers.items():
            if value.const_value is None or not _has_values(value):
                weights.parts[name] = (WeightPart(name, sizes(value)),)
                value.const_value = None
        for name, other in tied.items():
            if name in graph.initializers and other not in graph.initializers:  # the last of several stages
                weights.parts[name] = (WeightPart(other, sizes(graph.initializers[name])),)
                continue
            if name not in graph.initializers:
                continue
            ir.convenience.replace_all_uses_with(graph.initializers[name], graph.initializers[other])
            del graph.initializers[name], weights.parts[name]
        return weights

    def is_weight(self, value: ir.Value | None) -> bool:
        return value is not None and value.name in self.parts

    def storage(self, name: str) -> WeightStorage:
        """How an initializer is stored: its parts must agree.

        Raises:
            RecipeError: joined weights have different storages; lowering joins only weights that agree.
        """
        if name in self.floats:
            return self.floats[name]
        found = {self.storages.storage(part.name, part.shape) for part in self.parts[name]}
        if len(found) > 1:
            raise RecipeError(f"{name} joins weights that are stored differently: {sorted(found, key=str)}")
        storage = found.pop()
        return replace(storage, floats=self.type) if storage.is_quantized else WeightStorage.of_floats(self.type)

    def join(self, values: list[ir.Value], name: str) -> ir.Value:
        """One initializer with the rows of several, which no node may use afterwards."""
        rows = sum(sizes(value)[0] for value in values)
        assert values[0].dtype is not None
        joined = self._add(name, values[0].dtype, (rows, *sizes(values[0])[1:]))
        self.parts[name] = tuple(part for value in values for part in self.parts[_name(value)])
        for value in values:
            del self.parts[_name(value)]
        return joined

    def select(self, value: ir.Value, form: Form) -> ir.Value:
        """A new initializer with a part of a weight, or another form of it."""
        (part,) = self.parts[_name(value)]
        selected = replace(part, form=form)
        name = f"{_name(value).removesuffix('.weight')}.{form.name.lower()}.weight"
        assert value.dtype is not None
        made = self._add(name, value.dtype, selected.stored_shape)
        self.parts[name] = (selected,)
        return made

    def drop(self, value: ir.Value) -> None:
        """Remove an initializer that only nodes use that will be replaced."""
        del self.parts[_name(value)]

    def fill(self, value: ir.Value, multiple: int) -> None:
        """Fill experts up with zeros (WeightPart.multiple)."""
        (part,) = self.parts[_name(value)]
        filled = replace(part, multiple=multiple)
        self.parts[_name(value)] = (filled,)
        value.shape = ir.Shape(filled.stored_shape)

    def keep_float32(self, value: ir.Value) -> None:
        """Store a weight in float32 whatever the type of the graph's arithmetic."""
        self.floats[_name(value)] = FLOAT32

    def keep_floats(self, value: ir.Value) -> None:
        """Store a weight in the type of the graph's arithmetic, whatever the recipe says."""
        self.floats[_name(value)] = WeightStorage.of_floats(self.type)

    def retype(self) -> None:
        """Give every initializer of floats its stored type."""
        for name in self.parts:
            if name in self.graph.initializers:
                self.graph.initializers[name].type = ir.TensorType(_TYPES[self.storage(name).floats])

    def quantize(self, value: ir.Value) -> tuple[ir.Value, ...]:
        """Codes, scales and, if its storage has them, zero points that replace a float initializer.

        Codes are uint8 [..., in_features * bits / 8], scales are floats [..., in_features / weight_block_size] of the
        storage's type, zero points uint8 [..., ceil(in_features / weight_block_size * bits / 8)]. The float initializer
        leaves the graph when no node uses it.
        """
        name, storage = _name(value), self.storage(_name(value))
        *rows, columns = sizes(value)
        tensors = {
            CODES: (ir.DataType.UINT8, storage.num_code_bytes(columns)),
            SCALES: (_TYPES[storage.floats], columns // storage.block_size),
        }
        if storage.has_zero_points:
            tensors[ZERO_POINTS] = (ir.DataType.UINT8, storage.num_zero_point_bytes(1, columns))
        if name not in self.quantized:
            self.quantized[name] = storage
            for suffix, (dtype, width) in tensors.items():
                self._add(name + suffix, dtype, (*rows, width))
        return tuple(self.graph.initializers[name + suffix] for suffix in tensors)

    def keep_bfloat16(self, value: ir.Value) -> None:
        """Store a matrix of floats in bfloat16 if the checkpoint does so with all its parts.

        Every node that reads it must take both types.
        """
        storages = {self.storages.floats(part.name, part.shape) for part in self.parts[_name(value)]}
        if storages == {BFLOAT16}:
            self.floats[_name(value)] = BFLOAT16
            value.type = ir.TensorType(ir.DataType.BFLOAT16)

    def alias(self, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """The same bytes with another shape: the value itself, reshaped, or a new one if other nodes use it."""
        if len(value.uses()) == 1:
            value.shape = ir.Shape(shape)
            return value
        assert value.dtype is not None
        name = f"{_name(value)}.as_{'x'.join(str(size) for size in shape)}"
        self.aliases[name] = _name(value)
        return self._add(name, value.dtype, shape)

    def items(self) -> list[WeightItem]:
        """The items that the weight stage must write, in the order of the graph."""
        return [WeightItem(name, self.parts[name], self.storage(name)) for name in self.parts]

    def attach(self, written: dict[str, ExternalTensor]) -> None:
        """Point every initializer at the bytes that the weight stage wrote for it."""
        for name, value in self.graph.initializers.items():
            if (stored := self.aliases.get(name, name)) in written:
                tensor = written[stored]
                assert value.dtype is not None
                assert value.shape is not None
                value.const_value = ir.ExternalTensor(
                    tensor.file, tensor.offset, tensor.num_bytes, value.dtype, shape=value.shape, name=name
                )
            assert value.const_value is not None, f"nothing was written for {name}"

    def _add(self, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.graph.initializers[name] = value
        return value


def _has_values(value: ir.Value) -> bool:
    """Whether a traced initializer is a real constant; parameters are fake tensors without bytes."""
    from torch._subclasses.fake_tensor import FakeTensor

    return not isinstance(getattr(value.const_value, "raw", None), FakeTensor)


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name
