"""The published tensors of a model in GGUF files: llama.cpp's conversion, undone while rows are read.

    GGUF                                    published
    token_embd, output_norm, output         model.embed_tokens, model.norm, lm_head
    blk.N.NAME                              model.layers.N.NAME, see _LAYER; N of the draft layers: mtp.layers.0.NAME
    norms: 1 + w                            w; not of ssm_norm, which is linear_attn.norm
    ssm_a: -exp(A_log)                      linear_attn.A_log
    ffn_gate_exps, ffn_up_exps              mlp.experts.gate_up_proj: for every expert the rows of both
    value heads of linear layers: h = r * K + k, where the published one is k * R + r, for K key heads and R value
        heads for each. These are rows of attn_qkv (its last part), attn_gate, ssm_alpha, ssm_beta and ssm_conv1d,
        values of ssm_a and ssm_dt, columns of ssm_out

Names that are not known stay as they are, so that a message about unused tensors names them.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.gguf.blocks import DECODERS
from qwonnx.export.checkpoint.gguf.config_document import EMBEDDING, HEAD
from qwonnx.export.checkpoint.gguf.header import GgufTensor
from qwonnx.export.errors import TensorFormatError
from qwonnx.runtime.artifact.strict_json import quoted

ReadBytes = Callable[[Path, int, int], npt.NDArray[np.uint8]]  # of a file: from this offset, so many

# Values that are decoded at once: what decoding takes beside its result is a few megabytes.
_VALUES_AT_ONCE = 1 << 18
DECODING_BYTES = 16 * _VALUES_AT_ONCE

_MAX_PARTS = 1 << 14  # experts, or heads: a tensor is put together of so many

_MODEL = {EMBEDDING: "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", HEAD: "lm_head.weight"}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight",
    "ffn_gate_shexp.weight": "mlp.shared_expert.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_expert.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_expert.down_proj.weight",
    "ffn_gate_up_exps.weight": "mlp.experts.gate_up_proj",
    "ffn_down_exps.weight": "mlp.experts.down_proj",
}
_FULL = {
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
}
_LINEAR = {
    "attn_qkv.weight": "linear_attn.in_proj_qkv.weight",
    "attn_gate.weight": "linear_attn.in_proj_z.weight",
    "ssm_a": "linear_attn.A_log",
    "ssm_alpha.weight": "linear_attn.in_proj_a.weight",
    "ssm_beta.weight": "linear_attn.in_proj_b.weight",
    "ssm_conv1d.weight": "linear_attn.conv1d.weight",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_norm.weight": "linear_attn.norm.weight",
    "ssm_out.weight": "linear_attn.out_proj.weight",
}
_DRAFT = {
    "nextn.eh_proj.weight": "mtp.fc.weight",
    "nextn.enorm.weight": "mtp.pre_fc_norm_embedding.weight",
    "nextn.hnorm.weight": "mtp.pre_fc_norm_hidden.weight",
    "nextn.shared_head_norm.weight": "mtp.norm.weight",
}
_GATE, _UP, _GATE_UP = "ffn_gate_exps.weight", "ffn_up_exps.weight", "mlp.experts.gate_up_proj"
_FUSED_QKV = "attn_qkv.weight"  # of a layer of full attention: its three projections, one after the other
_CENTRED_NORM = re.compile(r"(?<!linear_attn\.)norm(_embedding|_hidden)?\.weight$")
_BLOCK = re.compile(r"blk\.(\d{1,4})\.(.+)")


class _Inverse(Enum):
    """What is undone of the values."""

    NONE = "as stored"
    SUBTRACT_ONE = "w of 1 + w"
    LOGARITHM = "x of -exp(x)"


@dataclass(frozen=True, slots=True)
class RowRun:
    """Consecutive rows of a stored tensor."""

    tensor: GgufTensor
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class PublishedTensor:
    """A published tensor as rows of stored ones, in its order. Without first axes it is one row."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # "F32", or "F16" and "BF16" where all values are stored so
    num_bytes: int  # stored
    _runs: tuple[RowRun, ...]
    _ends: tuple[int, ...]  # of the runs, counted in rows of this tensor
    _columns: npt.NDArray[np.intp] | None  # the stored column of each; None: they are in order
    _inverse: _Inverse

    @classmethod
    def of(
        cls,
        name: str,
        shape: tuple[int, ...],
        runs: Iterable[RowRun],
        columns: npt.NDArray[np.intp] | None = None,
    ) -> PublishedTensor:
        kept = tuple(runs)
        inverse = _Inverse.SUBTRACT_ONE if _CENTRED_NORM.search(name) else _Inverse.NONE
        if name.endswith(".A_log"):
            inverse = _Inverse.LOGARITHM
        dtypes = {run.tensor.type.float_dtype for run in kept} if inverse is _Inverse.NONE else set()
        dtype = (dtypes.pop() if len(dtypes) == 1 else None) or "F32"
        ends = tuple(np.cumsum([run.count for run in kept]).tolist())
        num_bytes = sum(run.count * run.tensor.row_bytes for run in kept)
        return cls(name, shape, dtype, num_bytes, kept, ends, columns, inverse)

    @property
    def stored(self) -> dict[str, GgufTensor]:
        """The stored tensors by name."""
        return {run.tensor.name: run.tensor for run in self._runs}

    @property
    def is_decoded(self) -> bool:
        """Whether values take another number of bytes than the stored ones."""
        return any(run.tensor.type.float_dtype != self.dtype for run in self._runs)

    def floats(self, start: int, count: int, read: ReadBytes) -> npt.NDArray[np.float32]:
        """`count` values from index `start`, in the published order."""
        return self._read(start, count, read, np.dtype(np.float32))

    def halves(self, start: int, count: int, read: ReadBytes) -> npt.NDArray[np.uint16]:
        """The same as bits, where dtype is "F16" or "BF16"."""
        assert self.dtype in ("F16", "BF16"), self.name
        return self._read(start, count, read, np.dtype(np.uint16))

    def _read(self, start: int, count: int, read: ReadBytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        num_columns = self.shape[-1]
        if not count:
            return np.empty(0, dtype)
        first, last = start // num_columns, -(-(start + count) // num_columns)
        rows = np.empty((last - first, num_columns), dtype)
        at = 0
        for run in self._pieces(first, last):
            for part in _cut(run, max(1, _VALUES_AT_ONCE // num_columns)):
                self._fill(rows[at : at + part.count], part, read)
                at += part.count
        skipped = start - first * num_columns
        return rows.reshape(-1)[skipped : skipped + count]

    def _fill(self, rows: npt.NDArray[Any], run: RowRun, read: ReadBytes) -> None:
        tensor = run.tensor
        content = read(tensor.path, tensor.offset + run.start * tensor.row_bytes, run.count * tensor.row_bytes)
        with np.errstate(all="ignore"):  # an export refuses values that are not finite, by name
            if rows.dtype == np.uint16:
                values: npt.NDArray[Any] = content.view("<u2")
            else:
                values = DECODERS[tensor.type.name](content.reshape(-1, tensor.type.num_bytes))
            values = values.reshape(rows.shape)
            rows[...] = values if self._columns is None else values[:, self._columns]
            if self._inverse is _Inverse.SUBTRACT_ONE:
                rows -= np.float32(1)
            elif self._inverse is _Inverse.LOGARITHM:
                rows[...] = np.log(-rows.astype(np.float64))

    def _pieces(self, first: int, last: int) -> Iterator[RowRun]:
        for number in range(bisect.bisect_right(self._ends, first), len(self._runs)):
            run, end = self._runs[number], self._ends[number]
            begin = end - run.count
            if begin >= last:
                return
            low, high = max(first, begin) - begin, min(last, end) - begin
            yield RowRun(run.tensor, run.start + low, high - low)


def published_tensors(stored: Mapping[str, GgufTensor], config: ModelConfig) -> dict[str, PublishedTensor]:
    """The published tensors by name. Shapes follow from the stored ones; whoever reads them checks these.

    Raises:
        TensorFormatError: two stored tensors stand for one, or a tensor would have too many parts.
    """
    for parts, field in (
        (config.num_experts, "num_experts"),
        (config.linear_num_value_heads, "linear_num_value_heads"),
    ):
        if parts > _MAX_PARTS:
            raise TensorFormatError(f"the GGUF file has {parts} as {field}, which no model has: restore it")
    heads = _ValueHeads(config)
    made: dict[str, PublishedTensor] = {}
    ranked = {name: _ranked(name, tensor) for name, tensor in stored.items()}
    for name, tensor in ranked.items():
        for one in _of(name, tensor, ranked, config, heads):
            if one.name in made:
                raise TensorFormatError(
                    f"{tensor.path} has two tensors that stand for {quoted(one.name)}: convert the model again"
                )
            made[one.name] = one
    return made


def _of(
    name: str, tensor: GgufTensor, stored: Mapping[str, GgufTensor], config: ModelConfig, heads: _ValueHeads
) -> Iterator[PublishedTensor]:
    """What a stored tensor becomes; nothing if another one stands for it."""
    found = _BLOCK.fullmatch(name)
    if found is None:
        yield _whole(_MODEL.get(name, name), tensor)
        return
    number, inner = int(found[1]), found[2]
    is_draft = number >= config.num_hidden_layers
    is_linear = not is_draft and config.layer_types[number] == "linear_attention"
    layer = f"mtp.layers.{number - config.num_hidden_layers}." if is_draft else f"model.layers.{number}."
    if is_draft and inner in _DRAFT:
        yield _whole(_DRAFT[inner], tensor)
    elif inner == _GATE:
        up = stored.get(f"blk.{found[1]}.{_UP}")
        yield _whole(name, tensor) if up is None else _gate_up(layer + _GATE_UP, tensor, up)
    elif inner == _UP and f"blk.{found[1]}.{_GATE}" in stored:
        return
    elif not is_linear and inner == _FUSED_QKV:
        yield from _projections(layer, tensor, config)
    elif is_linear and inner in _LINEAR:
        yield heads.restored(layer + _LINEAR[inner], tensor)
    elif inner in _LAYER or (inner in _FULL and not is_linear):
        yield _whole(layer + (_LAYER.get(inner) or _FULL[inner]), tensor)
    else:
        yield _whole(name, tensor)


def _ranked(name: str, tensor: GgufTensor) -> GgufTensor:
    """With first axes of size 1, which llama-quantize leaves out."""
    rank = 3 if name.endswith("_exps.weight") else 2 if name.endswith(".weight") and "norm" not in name else 1
    missing = rank - len(tensor.shape)
    return dataclasses.replace(tensor, shape=(1,) * missing + tensor.shape) if missing > 0 else tensor


def _whole(name: str, tensor: GgufTensor) -> PublishedTensor:
    return PublishedTensor.of(name, tensor.shape, [RowRun(tensor, 0, tensor.num_rows)])


def _gate_up(name: str, gate: GgufTensor, up: GgufTensor) -> PublishedTensor:
    """[E, I, H] twice -> [E, 2 * I, H]."""
    if len(gate.shape) != 3 or gate.shape != up.shape or gate.shape[0] > _MAX_PARTS:
        return _whole(gate.name, gate)
    num_experts, rows, columns = gate.shape
    runs = [RowRun(tensor, expert * rows, rows) for expert in range(num_experts) for tensor in (gate, up)]
    return PublishedTensor.of(name, (num_experts, 2 * rows, columns), runs)


def _projections(layer: str, tensor: GgufTensor, config: ModelConfig) -> Iterator[PublishedTensor]:
    queries, keys = (heads * config.head_dim for heads in (2 * config.num_attention_heads, config.num_key_value_heads))
    if len(tensor.shape) != 2 or tensor.num_rows != queries + 2 * keys:
        yield _whole(tensor.name, tensor)
        return
    start = 0
    for part, rows in (("q", queries), ("k", keys), ("v", keys)):
        run = RowRun(tensor, start, rows)
        yield PublishedTensor.of(f"{layer}self_attn.{part}_proj.weight", (rows, tensor.shape[-1]), [run])
        start += rows


@dataclass(frozen=True, slots=True)
class _ValueHeads:
    """Puts the value heads of linear layers into the published order, where a tensor has the shape of the config."""

    config: ModelConfig

    def restored(self, name: str, tensor: GgufTensor) -> PublishedTensor:
        config = self.config
        head_dim, num_heads = config.linear_value_head_dim, config.linear_num_value_heads
        before = 2 * config.linear_num_key_heads * config.linear_key_head_dim  # rows of queries and keys
        values = num_heads * head_dim
        all_rows = RowRun(tensor, 0, tensor.num_rows)
        shape = tensor.shape
        if name.endswith(".conv1d.weight") and len(shape) == 2:
            shape = (shape[0], 1, shape[1])
        columns = None
        runs = [all_rows]
        match name.rsplit(".linear_attn.")[1]:
            case "in_proj_qkv.weight" | "conv1d.weight" if tensor.num_rows == before + values:
                runs = [RowRun(tensor, 0, before), *self._rows(tensor, before, head_dim)]
            case "in_proj_z.weight" if tensor.num_rows == values:
                runs = self._rows(tensor, 0, head_dim)
            case "in_proj_a.weight" | "in_proj_b.weight" if tensor.num_rows == num_heads:
                runs = self._rows(tensor, 0, 1)
            case "A_log" | "dt_bias" if shape == (num_heads,):
                columns = np.array(self._order)
            case "out_proj.weight" if shape[-1] == values:
                columns = (np.array(self._order)[:, None] * head_dim + np.arange(head_dim)).reshape(-1)
        return PublishedTensor.of(name, shape, runs, columns)

    @property
    def _order(self) -> list[int]:
        """The stored head of each published one."""
        num_keys, num_values = self.config.linear_num_key_heads, self.config.linear_num_value_heads
        per_key = num_values // num_keys
        return [head % per_key * num_keys + head // per_key for head in range(num_values)]

    def _rows(self, tensor: GgufTensor, start: int, head_dim: int) -> list[RowRun]:
        return [RowRun(tensor, start + head * head_dim, head_dim) for head in self._order]


def _cut(run: RowRun, rows_at_once: int) -> Iterator[RowRun]:
    for start in range(0, run.count, rows_at_once):
        yield RowRun(run.tensor, run.start + start, min(rows_at_once, run.count - start))
