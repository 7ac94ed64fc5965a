"""bitsandbytes matrices of 4 bits: places in a table of 16 values, with a scale for a block of values.

    X                                   U8 [values / 2, 1], or another view of these bytes: two codes a byte, the even
                                        value in the high half
    X.quant_map                         F32 [16]    the table (nf4 or fp4)
    X.absmax                            F32 [blocks], or U8 if it is quantised too
    X.nested_quant_map, .nested_absmax  F32 [256], F32 [blocks of absmax]    its table and its scales, if it is
    X.quant_state.bitsandbytes__nf4     U8    JSON: shape, block sizes, the offset of a quantised absmax

weight = table[code] * absmax of the block; absmax = table[code] * scale of its block + offset if it is quantised.
Blocks are of consecutive values of the matrix, whatever its rows. No kernel takes these codes: the matrix is read as
values, and quantised again. Matrices of 8 bits are in integers.py.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.errors import TensorFormatError

if TYPE_CHECKING:
    import torch

SIGN = ".absmax"  # after the weight's own name
TYPES = ("nf4", "fp4")
STATE_SUFFIXES = tuple(f".quant_state.bitsandbytes__{kind}" for kind in TYPES)
COMPANIONS = (SIGN, ".quant_map", ".nested_absmax", ".nested_quant_map", *STATE_SUFFIXES)

_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_MAX_STATE_BYTES = 1 << 12
_MAX_VALUES = 1 << 40
_STORAGES = ("U8", "I8", "BF16", "F16", "F32")


@dataclass(frozen=True, slots=True)
class _State:
    """A matrix as its JSON describes it."""

    kind: str
    shape: tuple[int, ...]
    block_size: int
    nested_block_size: int | None  # None: absmax is not quantised
    offset: float

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TableWeight:
    """One matrix, checked but not read yet; make one with `open`."""

    codes: ClassVar[None] = None
    reading_bytes: ClassVar[int] = 0
    reading_bytes_per_value: ClassVar[int] = 7  # places in the table, float32, and scales of blocks
    name: str
    num_rows: int
    num_columns: int
    num_bytes: int
    _state: _State
    _checkpoint: Checkpoint

    @classmethod
    def open(cls, checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> TableWeight:
        """Open a matrix.

        Raises:
            MissingTensorError: one of its tensors does not exist.
            TensorFormatError: one has the wrong shape or dtype, or the description is malformed.
        """
        state = _state(checkpoint, name)
        if state.shape != shape:
            raise TensorFormatError(
                f"{name} has shape {list(state.shape)} where config.json asks for {list(shape)}: use the config.json"
                " that was saved with the weights"
            )
        num_blocks = -(-state.num_values // state.block_size)
        codes = checkpoint.info(name)
        checkpoint.expect(name, codes.shape, _STORAGES)
        if codes.num_bytes != -(-state.num_values // 2):
            raise TensorFormatError(f"{name} has {codes.num_bytes} bytes for {state.num_values} codes: restore it")
        num_bytes = codes.num_bytes + checkpoint.expect(f"{name}.quant_map", (16,), ("F32",))
        if state.nested_block_size is None:
            num_bytes += checkpoint.expect(name + SIGN, (num_blocks,), ("F32",))
        else:
            num_bytes += (
                checkpoint.expect(name + SIGN, (num_blocks,), ("U8",))
                + checkpoint.expect(f"{name}.nested_quant_map", (256,), ("F32",))
                + checkpoint.expect(f"{name}.nested_absmax", (-(-num_blocks // state.nested_block_size),), ("F32",))
            )
        return cls(name, math.prod(shape[:-1]), shape[-1], num_bytes, state, checkpoint)

    @property
    def kind(self) -> str:
        """ "nf4" or "fp4"."""
        return self._state.kind

    def read(self, start: int, count: int) -> torch.Tensor:
        """Rows as float32 [count, num_columns]."""
        return self._values(start * self.num_columns, count * self.num_columns).view(count, self.num_columns)

    def read_part(self, row: int, first_column: int, num_columns: int) -> torch.Tensor:
        """Some columns [1, num_columns] of one row."""
        return self._values(row * self.num_columns + first_column, num_columns).view(1, -1)

    def _values(self, start: int, count: int) -> torch.Tensor:
        """float32 [count], consecutive values of the matrix."""
        import torch

        size = self._state.block_size
        first, stop = start // size, -(-(start + count) // size)
        begin, end = first * size, min(stop * size, self._state.num_values)
        octets = torch.from_numpy(self._checkpoint.read_bytes(self.name, begin // 2, -(-end // 2) - begin // 2))
        table = self._checkpoint.read(f"{self.name}.quant_map")
        places = torch.arange(256)
        pairs = torch.stack((table[places >> 4], table[places & 0xF]), 1)
        values = pairs.index_select(0, octets.int()).flatten()[: end - begin]
        scales, whole = self._absmax(first, stop - first), (end - begin) // size
        values[: whole * size].view(whole, size).mul_(scales[:whole, None])
        values[whole * size :].mul_(scales[-1])  # the last block of the matrix may have fewer
        return values[start - begin :][:count]

    def _absmax(self, start: int, count: int) -> torch.Tensor:
        """The scales of blocks, float32 [count]."""
        import torch

        size = self._state.nested_block_size
        if size is None:
            return self._checkpoint.read(self.name + SIGN, start, count)
        octets = torch.from_numpy(self._checkpoint.read_bytes(self.name + SIGN, start, count))
        first, stop = start // size, -(-(start + count) // size)
        outer = self._checkpoint.read(f"{self.name}.nested_absmax", first, stop - first)
        table = self._checkpoint.read(f"{self.name}.nested_quant_map")
        scales = outer[torch.arange(start, start + count) // size - first]
        return table.index_select(0, octets.int()).mul_(scales).add_(self._state.offset)


def table_shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
    """The shape of a weight, which its description has.

    Raises:
        TensorFormatError: the description is absent or malformed.
    """
    return _state(checkpoint, name).shape


def _state(checkpoint: Checkpoint, name: str) -> _State:
    stored = next((name + suffix for suffix in STATE_SUFFIXES if name + suffix in checkpoint.names), None)
    if stored is None:
        raise TensorFormatError(f"{name} has {SIGN[1:]} of bitsandbytes and no quant_state: restore it")
    info = checkpoint.info(stored)
    if info.dtype != "U8" or info.num_bytes > _MAX_STATE_BYTES:
        raise TensorFormatError(f"{stored} is not the description of a matrix: restore it")
    try:
        fields = json.loads(checkpoint.read_bytes(stored, 0, info.num_bytes).tobytes())
        state = _parsed(fields, stored.rpartition("__")[2])
    except (ValueError, KeyError, TypeError, RecursionError):
        state = None
    if state is None:
        raise TensorFormatError(f"{stored} does not describe a matrix as bitsandbytes does: restore it")
    return state


def _parsed(fields: dict[str, Any], kind: str) -> _State | None:
    """The description; None if it is malformed. Raises ValueError, KeyError or TypeError if a field is not there."""
    shape, block_size = tuple(fields["shape"]), fields["blocksize"]
    nested = fields.get("nested_blocksize")
    offset = fields["nested_offset"] if nested is not None else 0.0
    sizes = (*shape, block_size, *(() if nested is None else (nested,)))
    if any(type(size) is not int or size < 1 for size in sizes) or not 2 <= len(shape) <= 3:
        return None
    if block_size not in _BLOCK_SIZES or fields["quant_type"] != kind or math.prod(shape) > _MAX_VALUES:
        return None
    if not math.isfinite(offset):
        return None
    return _State(kind, shape, block_size, nested, float(offset))
