"""Compares the export's merge of adapters with that of peft on a whole model, where memory allows it."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch

from qwonnx.export.adapters.adapted_checkpoint import AdaptedCheckpoint
from qwonnx.export.evaluation.decoder_session import TokenIds
from qwonnx.export.evaluation.verify import run_reference
from qwonnx.export.verification.predictions import LogitSlice, compare_predictions
from qwonnx.export.verification.reference_layers import ReferenceLayers
from qwonnx.export.verification.token_budget import head_rows, whole_model_bytes
from qwonnx.runtime.quantities import bytes_text


def reason_against_peft(adapted: AdaptedCheckpoint, num_parameters: int, memory_bytes: int) -> str | None:
    """Why peft cannot merge the adapters here; None if it can."""
    needed = whole_model_bytes(num_parameters)
    if needed > memory_bytes:
        return f"that takes {bytes_text(needed)} of memory"
    if find_spec("peft") is None:
        return "it is not installed"
    if adapted.resolved.remote is not None:
        return "the checkpoint is read in ranges"
    return None


def merge_error(
    adapted: AdaptedCheckpoint,
    layers: ReferenceLayers,
    hidden: torch.Tensor,
    token_ids: TokenIds,
    memory_bytes: int,
    weights_file: str | None,
) -> float:
    """How far the layers' logits are from those of a model into which peft merges the adapters.

    The median over tokens of the difference's spread, relative to the spread of logits (see Predictions.logit_error).

    Args:
        adapted: the checkpoint, with adapters.
        layers: its layers.
        hidden: the input of their head [T, hidden_size].
        token_ids: int64 [T].
        memory_bytes: for slices of logits; the model comes on top.
        weights_file: see choose_files.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        VerificationError: transformers or peft do not load it, or the adapters.
    """
    folders = [location.folder for location in adapted.locations]
    whole = run_reference(adapted.resolved.whole_folder, token_ids, weights_file, folders).logits
    slices = (
        LogitSlice(rows, whole[:, rows], (hidden @ head.T).numpy())
        for rows, head in layers.head_slices(head_rows(memory_bytes, len(token_ids)))
    )
    return float(np.median(compare_predictions(slices, token_ids).logit_error))
