"""Run an artifact's decoder.onnx on plain arrays: the lowest layer that proves a graph right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from qwonnx.runtime.artifact.folder import Artifact


def onnxruntime_session(artifact: Artifact) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(artifact.file("decoder.onnx"), options, providers=["CPUExecutionProvider"])


def reference_evaluator(artifact: Artifact) -> Any:
    """onnx's own evaluator, which knows only ONNX. It takes no paths, so the weights are loaded into the model."""
    return ReferenceEvaluator(onnx.load(artifact.file("decoder.onnx")))


class Decoder:
    """One batch of sequences with its own states, which start from zero."""

    def __init__(self, artifact: Any, batch: int = 1, max_model_len: int = 512, session: Any = None) -> None:
        self.session = session or onnxruntime_session(artifact)
        self._specs = artifact.decoder.states
        self._inputs = [spec.name for spec in artifact.decoder.inputs]
        sizes = {"batch": batch, "max_model_len": max_model_len}
        self.states = {
            spec.past: np.zeros([size if isinstance(size, int) else sizes[size] for size in spec.shape], spec.dtype)
            for spec in self._specs
        }
        self.lengths = np.zeros(batch, np.int64)

    def step(
        self,
        token_ids: npt.ArrayLike,
        logit_positions: Iterable[int] | None = None,
        position_ids: np.ndarray | None = None,
    ) -> np.ndarray:
        """Feed [batch, T] tokens; logits [batch, T or as many as positions asked for, vocab_size]."""
        ids = np.asarray(token_ids, np.int64)
        num_tokens = ids.shape[1]
        if position_ids is None:
            rows = self.lengths[:, None] + np.arange(num_tokens)
            position_ids = np.broadcast_to(rows, (3, *rows.shape))
        wanted = range(num_tokens) if logit_positions is None else logit_positions
        feeds = {
            "input_ids": ids,
            "position_ids": np.ascontiguousarray(position_ids, np.int64),
            "positions": np.ascontiguousarray(position_ids[0], np.int64),
            "past_lengths": self.lengths,
            "last_positions": (self.lengths + num_tokens - 1).astype(np.int32),
            "total_sequence_length": np.array(self.lengths.max() + num_tokens, np.int32),
            "logit_positions": np.array(list(wanted), np.int64),
        }
        feeds = {name: feeds[name] for name in self._inputs}
        outputs = ["logits", *(spec.present for spec in self._specs)]
        logits, *present = self.session.run(outputs, {**feeds, **self.states})
        self.states = {spec.past: np.asarray(array) for spec, array in zip(self._specs, present, strict=True)}
        self.lengths = self.lengths + num_tokens
        return np.asarray(logits)

    def prefill(self, token_ids: Iterable[int], chunk_sizes: Iterable[int]) -> np.ndarray:
        """Feed one sequence in chunks of the given sizes, the last of which repeats; logits [T, vocab_size]."""
        ids = np.array(list(token_ids), np.int64)
        logits, start, sizes = [], 0, iter(chunk_sizes)
        size = next(sizes)
        while start < len(ids):
            logits.append(self.step(ids[None, start : start + size])[0])
            start += size
            size = next(sizes, size)
        return np.concatenate(logits)

    def state(self, layer: int, kind: str) -> np.ndarray:
        return self.states[f"past_key_values.{layer}.{kind}"]
