"""The exporter's weights by name: renames, rearranges and transforms a checkpoint's tensors.

    ours                                    the checkpoint's, after `model.language_model.` or `model.`
    lm_head.weight                          lm_head.weight, without prefix
    layers.N.mlp.experts.gate_up_proj       the same, fused: gate rows, then up; or experts.E.{gate,up}_proj.weight.
                                            Ours alternate (2r: gate r, 2r + 1: up r), as the kernels need them
    layers.N.mlp.experts.down_proj          the same, fused; or experts.E.down_proj.weight
    layers.N.linear_attn.decay_scale        -exp(A_log)
    norms (but linear_attn.norm)            1 + weight: checkpoints store them centred on zero
    all others                              the same

This module knows what a weight means, not how its rows are read (row_reader.py), how the checkpoint stores it
(stored_weights.py) or how the artifact will store it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import KeysView
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.foreign_formats import recognised_tensors
from qwonnx.export.checkpoint.formats.codes import StoredCodes
from qwonnx.export.checkpoint.formats.stored_weights import (
    CheckpointWeights,
    PlainWeight,
    StoredWeight,
    StoredWeights,
    is_transposed,
    loss_of,
    repacking_bytes,
)
from qwonnx.export.checkpoint.row_reader import RowReader, Rows, Transform
from qwonnx.export.checkpoint.weight_names import EMBEDDING, HEAD, ExpertTensor, tied_weights
from qwonnx.export.checkpoint.weight_part import Form, WeightPart
from qwonnx.export.errors import TensorFormatError, UnusedTensorError
from qwonnx.runtime.artifact.strict_json import quoted

_PREFIXES = ("model.language_model.", "model.")

# Recognised, and not part of the text model; transformers does not load them into it either.
_SKIPPED_PREFIXES = {
    "mtp.": "multi-token-prediction head",
    "model.visual.": "vision tower",
    "v_head.": "value head of a trainer",
    "score.": "classification or reward head",
}
# Buffers that older versions saved; they follow from config.json.
_ROTARY_BUFFER = re.compile(r"(^|\.)rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)$")
_ROTARY = "buffers of rotary embeddings"
# Of quantised checkpoints whose activations or caches other runtimes quantise too.
_ACTIVATION_SCALE = re.compile(r"\.(input|output|activation|input_global|[qkv])_scale$|_activation_scale$")
_ACTIVATION_SCALES = "scales of activations and of caches"
_TIED_HEAD = "copy of the tied embedding"

# Stored as w, used as 1 + w. The gated norm of the linear layers, linear_attn.norm, is used as stored.
_CENTRED_NORM = re.compile(r"^norm\.weight$|\.(input_layernorm|post_attention_layernorm|self_attn\.[qk]_norm)\.weight$")
_CONVOLUTION = ".linear_attn.conv1d.weight"
# Endings of most of the model's own names, which no other format has.
_OWN_ENDINGS = ("_proj.weight", "norm.weight", ".A_log", ".dt_bias")
_DECAY_SCALE, _LOG_DECAY = ".linear_attn.decay_scale", ".linear_attn.A_log"


@dataclass(frozen=True, slots=True)
class SkippedPart:
    """A part of the checkpoint that is recognised and not exported."""

    name: str  # for display
    num_tensors: int
    num_bytes: int


def text_prefix(names: KeysView[str]) -> str:
    """The beginning of the text model's names in a checkpoint."""
    return next((prefix for prefix in _PREFIXES if prefix + EMBEDDING in names), _PREFIXES[0])


class WeightSource:
    """Gives weights by the exporter's names, and records which of the checkpoint's tensors were used.

    Args:
        checkpoint: that has the weights.
        config: of the model.
        changed: the checkpoint's weights after a change; None: they are taken as they are stored.
    """

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, changed: CheckpointWeights | None = None) -> None:
        self._stored = StoredWeights(checkpoint, config.quantization) if changed is None else changed
        self._has_values = checkpoint.has_values
        self._tied = tied_weights(config)
        self._is_quantized = config.quantization is not None
        self._head_dim = config.head_dim
        self._opened: dict[tuple[str, tuple[int, ...]], StoredWeight] = {}  # by stored name and shape
        self._prefix = text_prefix(self._stored.names)

    @property
    def skipped(self) -> tuple[SkippedPart, ...]:
        """Recognised parts of the checkpoint that are not exported, with their numbers of tensors and bytes."""
        tensors: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for name in self._stored.names:
            if (part := self._skipped_part(name)) is not None:
                stored = self._stored.tensors(name)
                tensors[part] += len(stored)
                sizes[part] += sum(info.num_bytes for info in stored)
        return tuple(SkippedPart(part, tensors[part], sizes[part]) for part in sorted(tensors))

    def rows(self, name: str, shape: tuple[int, ...]) -> RowReader:
        """A reader of one weight, which must have this shape; this call reads no values.

        Raises:
            MissingTensorError: the checkpoint has no tensor for it.
            TensorFormatError: a tensor has another shape or a type that cannot be read, or permutes input features.
        """
        groups = self._groups(name, shape)
        weights = {rows.weight.name: rows.weight for lanes in groups for rows in lanes}
        transform = Transform.NONE
        if name.endswith(_DECAY_SCALE):
            transform = Transform.NEGATIVE_EXP
        elif _CENTRED_NORM.search(name):
            transform = Transform.ADD_ONE
        return RowReader(
            name=name,
            num_rows=math.prod(shape[:-1]),
            num_columns=shape[-1],
            num_source_bytes=sum(weight.num_bytes for weight in weights.values()),
            stored_codes=frozenset(weight.codes for weight in weights.values()),
            _groups=groups,
            _transform=transform,
            _is_transposed=any(map(is_transposed, weights.values())),
            _repacking_bytes=max(map(repacking_bytes, weights.values())),
            _reading_bytes=max(weight.reading_bytes for weight in weights.values()),
            _reading_bytes_per_value=max(weight.reading_bytes_per_value for weight in weights.values()),
        )

    def part(self, part: WeightPart) -> RowReader:
        """A reader of what a target stores of a weight; raises as rows() does."""
        whole = self.rows(part.name, part.shape)
        if part.form is Form.LOGARITHM:
            return whole.as_stored()
        if part.form in (Form.QUERIES, Form.GATES):
            return whole.blocks(self._head_dim, odd=part.form is Form.GATES)
        if part.stored_shape == part.shape:
            return whole
        *rows, columns = part.stored_shape
        return whole.filled(math.prod(rows), columns)

    def stored_codes(self, name: str, shape: tuple[int, ...]) -> frozenset[StoredCodes | None]:
        """`stored_codes` of a weight's reader; raises as `rows` does."""
        return self.rows(name, shape).stored_codes

    def is_bfloat16(self, name: str, shape: tuple[int, ...]) -> bool:
        """`is_bfloat16` of a weight's reader; raises as `rows` does."""
        return self.rows(name, shape).is_bfloat16

    @property
    def notes(self) -> tuple[str, ...]:
        """Of weights that were opened: which are decoded, because no kernel takes their codes."""
        decoded = Counter(loss for weight in self._opened.values() if (loss := loss_of(weight)) is not None)
        return tuple(f"decoded: {count} weights in {loss}" for loss, count in sorted(decoded.items()))

    @property
    def num_layers(self) -> int:
        """The number of layers, from the names of the checkpoint's tensors."""
        layers = re.compile(re.escape(self._prefix) + r"layers\.(\d{1,6})\.")
        return 1 + max((int(found[1]) for found in map(layers.match, self._stored.names) if found), default=-1)

    @property
    def has_tied_copy(self) -> bool:
        """Whether the checkpoint has a head beside the embedding that it is tied to."""
        return bool(self._tied) and HEAD in self._stored.names

    def layer_type(self, layer: int) -> str | None:
        """The type of a layer, from the names of its tensors; None: they show none."""
        names = self._stored.names
        signs = {"linear_attention": _LOG_DECAY, "full_attention": ".self_attn.q_norm.weight"}
        found = [kind for kind, sign in signs.items() if f"{self._prefix}layers.{layer}{sign}" in names]
        return found[0] if len(found) == 1 else None

    def check_format(self) -> None:
        """Refuse tensors of a format that is not read, before a message calls them missing or misshapen.

        Raises:
            UnusedTensorError: a tensor is of an adapter, or of a quantiser that config.json does not name.
            TensorFormatError: a convolution is turned, as MLX stores it.
        """
        own = [name for name in self._stored.names if self._skipped_part(name) is None]
        if known := recognised_tensors(name for name in own if not name.endswith(_OWN_ENDINGS)):
            raise UnusedTensorError(f"the tensor {known}")
        for name in own:
            if name.endswith(_CONVOLUTION):
                shape = self._stored.shape(name)
                if len(shape) == 3 and shape[1] > 1 == shape[2]:
                    raise TensorFormatError(
                        f"{name} has shape {list(shape)}, as MLX stores it, and MLX shifts norms too: export the"
                        " checkpoint that the conversion was made from"
                    )

    def check_all_used(self) -> None:
        """Refuse a checkpoint with unused tensors; call it after `rows` was called for all weights.

        Raises:
            UnusedTensorError: a tensor was not used and does not belong to a skipped part.
            TensorFormatError: the embeddings are tied, and the checkpoint has a head that differs from them.
        """
        used = {name for name, _ in self._opened}
        unused = sorted(name for name in self._stored.names - used if self._skipped_part(name) is None)
        if unused:
            first = ", ".join(quoted(name) for name in unused[:3]) + (", ..." if len(unused) > 3 else "")
            raise UnusedTensorError(
                f"the model does not use {len(unused)} of the checkpoint's tensors ({first}): config.json belongs to"
                " another model, or a trainer added them; save the model without them"
            )
        if self.has_tied_copy and self._has_values:
            embedding = self._prefix + EMBEDDING
            self._check_tied_copy(next(weight for (name, _), weight in self._opened.items() if name == embedding))

    def _groups(self, name: str, shape: tuple[int, ...]) -> tuple[tuple[Rows, ...], ...]:
        """A weight's rows in the checkpoint, by groups and lanes: see RowReader."""
        if experts := ExpertTensor.of(name):
            return self._experts(name, shape, self._prefix + experts.prefix, gate_up=experts.is_gate_up)
        ours = self._tied.get(name, name)
        stored = ours if ours == HEAD else self._prefix + ours.replace(_DECAY_SCALE, _LOG_DECAY)
        return ((Rows(self._open(stored, shape), 0),),)

    def _experts(
        self, name: str, shape: tuple[int, ...], prefix: str, *, gate_up: bool
    ) -> tuple[tuple[Rows, ...], ...]:
        num_experts, num_rows, num_columns = shape
        fused = self._prefix + name
        firsts = (f"{prefix}0.{part}_proj.weight" for part in ("gate", "up", "down"))
        if fused in self._stored.names or not any(first in self._stored.names for first in firsts):
            weight = self._open(fused, shape)
            lane_starts = (0, num_rows // 2) if gate_up else (0,)
            return tuple(
                tuple(Rows(weight, expert * num_rows + start) for start in lane_starts) for expert in range(num_experts)
            )
        parts = ("gate_proj", "up_proj") if gate_up else ("down_proj",)
        part_shape = (num_rows // len(parts), num_columns)
        return tuple(
            tuple(Rows(self._open(f"{prefix}{expert}.{part}.weight", part_shape), 0) for part in parts)
            for expert in range(num_experts)
        )

    def _open(self, stored: str, shape: tuple[int, ...]) -> StoredWeight:
        key = stored, shape
        if key not in self._opened:
            self._opened[key] = self._stored.open(stored, shape)
        return self._opened[key]

    def _skipped_part(self, name: str) -> str | None:
        """The skipped part that a tensor belongs to; None if it belongs to the text model."""
        if self._tied and name == HEAD:
            return _TIED_HEAD
        if _ROTARY_BUFFER.search(name):
            return _ROTARY
        if self._is_quantized and _ACTIVATION_SCALE.search(name):
            return _ACTIVATION_SCALES
        return next((part for prefix, part in _SKIPPED_PREFIXES.items() if name.startswith(prefix)), None)

    def _check_tied_copy(self, embedding: StoredWeight) -> None:
        """Check that a stored head equals the tied embeddings: the export drops it."""
        num_rows, num_columns = embedding.num_rows, embedding.num_columns
        head = self._stored.open(HEAD, (num_rows, num_columns))
        rows_at_once = max(1, (1 << 20) // num_columns)
        for start in range(0, num_rows, rows_at_once):
            count = min(rows_at_once, num_rows - start)
            if not np.array_equal(_floats(head, start, count), _floats(embedding, start, count)):
                raise TensorFormatError(
                    f"{HEAD} differs from {self._prefix + EMBEDDING} where config.json says tie_word_embeddings:"
                    " set that to false, or remove the tensor"
                )


def _floats(weight: StoredWeight, start: int, count: int) -> npt.NDArray[np.float32]:
    """Rows as float32; without torch where they are floats already."""
    if isinstance(weight, PlainWeight):
        return weight.read_floats(start, count)
    values: npt.NDArray[np.float32] = weight.read(start, count).float().numpy()
    return values
