"""Runs the checkpoint's layers, over its own hidden states and over the artifact's, and keeps what each step found.

Each layer sees two sequences at once: the checkpoint's residual stream, and the artifact's before this layer. The
result for the second is compared with the artifact's stream after the layer. So an error of one layer shows in that
layer and in no other. Weights are read once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from qwonnx.export.evaluation.decoder_session import TokenIds
from qwonnx.export.verification.artifact_pass import STREAM
from qwonnx.export.verification.evidence import EMBEDDING, LAYER, PartError
from qwonnx.export.verification.reference_layers import ReferenceLayers
from qwonnx.export.verification.work_folder import WorkFolder

_STEP = "layers"  # in the record: a list, the embedding first


def run_layers(
    layers: ReferenceLayers,
    token_ids: TokenIds,
    work: WorkFolder,
    *,
    has_stream: bool,
    on_layers: Callable[[int], None],
) -> LayerResults:
    """Run all layers, or those that are left.

    Args:
        layers: the checkpoint's.
        token_ids: int64 [T].
        work: has the artifact's residual stream, if has_stream.
        has_stream: see there.
        on_layers: called with the number of finished layers.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    stream = work.array(STREAM) if has_stream else None
    found: list[dict[str, Any]] = list(work.done.get(_STEP, ()))
    if not found:
        embedded = layers.embed(token_ids.tolist()).numpy()
        part = None if stream is None else asdict(PartError.of(EMBEDDING, stream[0] - embedded, embedded))
        found = [{"part": part, "peak": 0.0, "used": []}]
        work.finish(_STEP, found, {_name(0): embedded})
    on_layers(len(found) - 1)
    for index in range(len(found) - 1, layers.num_layers):
        before = np.array(work.array(_name(index)))
        own = None if stream is None else np.array(stream[index])
        run = layers.run(index, torch.from_numpy(np.stack([before] if own is None else [before, own])))
        after = run.hidden.numpy()
        part = None
        if stream is not None and own is not None:
            part = asdict(PartError.of(f"{LAYER} {index}", stream[index + 1] - after[1], after[1] - own))
        found.append({"part": part, "peak": float(np.abs(after[0]).max()), "used": [sum(run.used), len(run.used)]})
        work.finish(_STEP, found, {_name(index + 1): after[0]}, replaces=_name(index))
        on_layers(index + 1)
    return LayerResults(found, np.array(work.array(_name(layers.num_layers))))


class LayerResults:
    """What the layers' record says, and the checkpoint's residual stream after the last one, float32 [T, hidden]."""

    def __init__(self, found: Sequence[dict[str, Any]], hidden: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        self.hidden = hidden
        self.parts = tuple(PartError(**each["part"]) for each in found if each["part"] is not None)
        self.peaks = tuple(float(each["peak"]) for each in found[1:])
        used, of = (sum(each["used"][place] for each in found[1:]) for place in (0, 1))
        self.experts_used = used / of if of else None


def _name(layer: int) -> str:
    return f"hidden-{layer % 2}"
