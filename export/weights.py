"""The exporter's weights, by name, out of a checkpoint's tensors: other names, other layouts, a little arithmetic.

    ours                                    the checkpoint's, after `model.language_model.` or `model.`
    lm_head.weight                          lm_head.weight, without prefix
    layers.N.mlp.experts.gate_up_proj       the same, fused: gate rows, then up; or experts.E.{gate,up}_proj.weight.
                                            Ours alternate (2r: gate r, 2r + 1: up r), as the kernels want them
    layers.N.mlp.experts.down_proj          the same, fused; or experts.E.down_proj.weight
    layers.N.linear_attn.decay_scale        -exp(A_log)
    norms (but linear_attn.norm)            1 + weight: checkpoints store them centred on zero
    all others                              the same

Values are taken in their stored type and computed in float32. Reading is by rows, a few at a time, and thread-safe.
This module knows what a weight means, not how it will be stored.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum

import torch

from qwonnx.export.checkpoint import Checkpoint
from qwonnx.export.config import ModelConfig
from qwonnx.export.errors import MissingTensorError, TensorFormatError, UnusedTensorError
from qwonnx.export.strict_json import quoted

_PREFIXES = ("model.language_model.", "model.")
_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"

# Recognised, and not part of the text model: the multi-token-prediction head and the vision tower.
_SKIPPED_PREFIXES = ("mtp.", "model.visual.")

# Stored as w, used as 1 + w. The gated norm of the linear layers, linear_attn.norm, is not among them.
_CENTRED_NORM = re.compile(r"^norm\.weight$|\.(input_layernorm|post_attention_layernorm|self_attn\.[qk]_norm)\.weight$")
_EXPERTS = re.compile(r"(.*\.mlp\.experts\.)(gate_up_proj|down_proj)$")
_DECAY_SCALE, _LOG_DECAY = ".linear_attn.decay_scale", ".linear_attn.A_log"

_DTYPES = ("BF16", "F16", "F32")


class Transform(Enum):
    """What happens to stored values, in float32."""

    NONE = "as stored"
    ADD_ONE = "1 + w"
    NEGATIVE_EXP = "-exp(w)"

    def apply(self, values: torch.Tensor) -> None:
        """In place."""
        if self is Transform.ADD_ONE:
            values.add_(1.0)
        elif self is Transform.NEGATIVE_EXP:
            values.exp_().neg_()


@dataclass(frozen=True, slots=True)
class _Rows:
    """Consecutive rows of one stored tensor, whose axes but the last are taken as one."""

    tensor: str
    start: int


@dataclass(frozen=True, slots=True)
class RowReader:
    """One weight as a matrix [num_rows, num_columns]: all axes but the last are taken as one, a vector is one row.

    The rows are cut into groups of equal size (an expert's rows, or all there are). Row r of a group is row r // k of
    the group's lane r % k, where k is the number of lanes: two for gate and up, else one.
    """

    name: str
    num_rows: int
    num_columns: int
    num_source_bytes: int
    _checkpoint: Checkpoint
    _groups: tuple[tuple[_Rows, ...], ...]
    _transform: Transform

    def read(self, start: int, count: int) -> torch.Tensor:
        """Rows as float32 [count, num_columns], in memory of their own. Safe to call from several threads.

        Raises:
            CheckpointError: the checkpoint cannot be read any more.
        """
        assert 0 <= start <= start + count <= self.num_rows, f"rows {start}+{count} of {self.name}"
        values = torch.empty((count, self.num_columns), dtype=torch.float32)
        group_rows = self.num_rows // len(self._groups)
        done = 0
        while done < count:
            group, first = divmod(start + done, group_rows)
            num_rows = min(count - done, group_rows - first)
            self._read_group(self._groups[group], first, values[done : done + num_rows])
            done += num_rows
        self._transform.apply(values)
        return values

    def _read_group(self, lanes: tuple[_Rows, ...], first: int, out: torch.Tensor) -> None:
        """Rows of one group, from the `first` of it, into `out`."""
        stop = first + len(out)
        for lane, rows in enumerate(lanes):
            # The lane's rows r with first <= r * len(lanes) + lane < stop.
            begin, end = (-(-(bound - lane) // len(lanes)) for bound in (first, stop))
            if begin < end:
                stored = self._checkpoint.read_flat(
                    rows.tensor, (rows.start + begin) * self.num_columns, (end - begin) * self.num_columns
                )
                out[begin * len(lanes) + lane - first :: len(lanes)].copy_(stored.view(end - begin, -1))


class WeightSource:
    """Gives weights by the exporter's names, and knows which of the checkpoint's tensors were not asked for."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig) -> None:
        self._checkpoint = checkpoint
        self._tied = config.tie_word_embeddings
        self._used: set[str] = set()
        names = checkpoint.names
        self._prefix = next((prefix for prefix in _PREFIXES if prefix + _EMBEDDING in names), _PREFIXES[0])

    @property
    def skipped(self) -> list[str]:
        """Tensors of the checkpoint that belong to recognised parts which are not exported, sorted."""
        return sorted(name for name in self._checkpoint.names if self._is_skipped(name))

    def rows(self, name: str, shape: tuple[int, ...]) -> RowReader:
        """A reader of one weight, which must have this shape; no value is read yet.

        Raises:
            MissingTensorError: the checkpoint has no tensor for it.
            TensorFormatError: a tensor has another shape, or a type that cannot be read.
        """
        if experts := _EXPERTS.match(name):
            return self._experts(name, shape, self._prefix + experts[1], gate_up=experts[2] == "gate_up_proj")
        if name == _HEAD:
            stored = self._prefix + _EMBEDDING if self._tied else _HEAD
        else:
            stored = self._prefix + name.replace(_DECAY_SCALE, _LOG_DECAY)
        transform = Transform.NONE
        if name.endswith(_DECAY_SCALE):
            transform = Transform.NEGATIVE_EXP
        elif _CENTRED_NORM.search(name):
            transform = Transform.ADD_ONE
        return self._reader(name, shape, [(_Rows(stored, 0),)], {stored: shape}, transform)

    def check_all_used(self) -> None:
        """Refuse a checkpoint with tensors that nothing used, after all weights were asked for.

        Raises:
            UnusedTensorError: there are some, beside those of parts that are recognised and skipped.
            TensorFormatError: the embeddings are tied, and the checkpoint has a head of its own that differs.
        """
        unused = sorted(
            name for name in self._checkpoint.names if name not in self._used and not self._is_skipped(name)
        )
        if unused:
            first = ", ".join(quoted(name) for name in unused[:3]) + (", ..." if len(unused) > 3 else "")
            raise UnusedTensorError(
                f"the checkpoint has {len(unused)} tensors that the model does not use ({first}):"
                " it is damaged, or its config.json is not its own"
            )
        if self._tied and _HEAD in self._checkpoint.names:
            self._check_tied_copy()

    def _experts(self, name: str, shape: tuple[int, ...], prefix: str, *, gate_up: bool) -> RowReader:
        num_experts, num_rows, num_columns = shape
        fused = self._prefix + name
        firsts = (f"{prefix}0.{part}_proj.weight" for part in ("gate", "up", "down"))
        if fused in self._checkpoint.names or not any(first in self._checkpoint.names for first in firsts):
            starts = range(0, num_experts * num_rows, num_rows)
            half = num_rows // 2
            groups: list[tuple[_Rows, ...]] = [
                (_Rows(fused, start), _Rows(fused, start + half)) if gate_up else (_Rows(fused, start),)
                for start in starts
            ]
            return self._reader(name, shape, groups, {fused: shape})
        parts = ("gate_proj", "up_proj") if gate_up else ("down_proj",)
        groups = [tuple(_Rows(f"{prefix}{expert}.{part}.weight", 0) for part in parts) for expert in range(num_experts)]
        part_shape = (num_rows // len(parts), num_columns)
        return self._reader(name, shape, groups, {rows.tensor: part_shape for group in groups for rows in group})

    def _reader(
        self,
        name: str,
        shape: tuple[int, ...],
        groups: list[tuple[_Rows, ...]],
        expected: dict[str, tuple[int, ...]],
        transform: Transform = Transform.NONE,
    ) -> RowReader:
        num_bytes = sum(self._check(tensor, tensor_shape) for tensor, tensor_shape in expected.items())
        self._used.update(expected)
        return RowReader(name, math.prod(shape[:-1]), shape[-1], num_bytes, self._checkpoint, tuple(groups), transform)

    def _check(self, tensor: str, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor that must be there, of this shape and a type that can be read."""
        if tensor not in self._checkpoint.names:
            raise MissingTensorError(
                f"the checkpoint has no {tensor} of shape {list(shape)}: it is incomplete, or its config.json is not"
                " its own; download both again"
            )
        info = self._checkpoint.info(tensor)
        if info.shape != shape:
            raise TensorFormatError(
                f"{tensor} has shape {list(info.shape)} where config.json asks for {list(shape)}:"
                " they do not belong together; download both again"
            )
        if info.dtype not in _DTYPES:
            raise TensorFormatError(f"{tensor} is stored as {info.dtype}: export a {', '.join(_DTYPES)} checkpoint")
        return info.num_bytes

    def _is_skipped(self, name: str) -> bool:
        return name.startswith(_SKIPPED_PREFIXES) or (self._tied and name == _HEAD)

    def _check_tied_copy(self) -> None:
        """A stored head beside tied embeddings is their copy; one that differs would be lost without a word."""
        embedding = self._prefix + _EMBEDDING
        shape = self._checkpoint.info(embedding).shape
        self._check(_HEAD, shape)
        rows_at_once = max(1, (1 << 20) // shape[1])
        for start in range(0, shape[0], rows_at_once):
            count = min(rows_at_once, shape[0] - start)
            head, copied = (self._checkpoint.read(name, start, count) for name in (_HEAD, embedding))
            if not torch.equal(head.float(), copied.float()):
                raise TensorFormatError(
                    f"{_HEAD} differs from {embedding} where config.json says tie_word_embeddings:"
                    " set that to false, or remove the tensor"
                )
