"""A decoder that is driven step by step, without a scheduler, on the device or the host that it was exported for."""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from functools import partial
from pathlib import Path

from infra.gpu.on_device.finding import LOG_SEVERITY
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.cache.buffers import BuffersFactory
from qwonnx.runtime.cache.device_buffers import DeviceBuffers
from qwonnx.runtime.cache.host_buffers import HostBuffers
from qwonnx.runtime.cache.hybrid_cache import HybridCache
from qwonnx.runtime.model.inputs import HOST_INPUTS
from qwonnx.runtime.model.placement import place
from qwonnx.runtime.model.runner import ModelRunner
from qwonnx.runtime.model.session import Session
from qwonnx.runtime.sampling.logits import RowLogits
from qwonnx.runtime.scheduling.sequence import Sequence, StepPlan
from qwonnx.runtime.settings import RuntimeSettings


class Steps:
    """An artifact with the states of some rows; a row's sequence begins with read().

    Args:
        folder: the artifact; its text files are not needed.
        num_rows: of the largest decoding step.
        max_model_len: tokens that a row has room for, and of the longest prompt.

    Attributes:
        device: that it runs on; None: the host.
        vocab_size: ids of tokens are below.
        num_captured: recorded decoding steps.
        seconds: of the last step, from its inputs to what the host gets of its logits.
    """

    def __init__(self, folder: Path, num_rows: int, max_model_len: int) -> None:
        artifact = open_artifact(folder)
        states, self.vocab_size = artifact.decoder.states, artifact.manifest.model.vocab_size
        settings = replace(RuntimeSettings.from_environment(), log_severity=LOG_SEVERITY)
        placement = place(artifact.manifest.target, settings)
        self.device = placement.device
        session = Session(artifact.file(artifact.decoder.file), settings, (), placement)
        make: BuffersFactory = HostBuffers
        if placement.device is not None:
            make = partial(DeviceBuffers, device=placement.device, host_inputs=HOST_INPUTS)
        self._cache = HybridCache(states, num_rows, max_model_len, make_buffers=make)
        self._runner = ModelRunner(session, states, self._cache, num_rows, max_model_len, self.vocab_size)
        self._sequences: list[Sequence] = []
        self.num_captured, self.seconds = 0, 0.0

    def capture(self) -> None:
        """Record decoding steps for replay; no row may be in use."""
        self.num_captured = self._runner.capture()

    def read(self, prompt: SequenceOf[int]) -> list[RowLogits]:
        """Read a prompt into the next row, in one step, and choose the most likely token.

        Returns:
            Its logits, overwritten by the next step.
        """
        sequence = Sequence(str(len(self._sequences)), list(prompt), len(prompt))
        self._sequences.append(sequence)
        return self._run(StepPlan(len(self._sequences) - 1, (sequence,), len(prompt), wants_logits=True))

    def decode(self) -> list[RowLogits]:
        """One token for every row. Returns the logits of each, overwritten by the next step."""
        return self._run(StepPlan(0, tuple(self._sequences), 1, wants_logits=True))

    def answers(self) -> list[list[int]]:
        """The tokens that were chosen so far, by row."""
        return [sequence.token_ids[sequence.num_prompt_tokens :] for sequence in self._sequences]

    def clear(self) -> None:
        """Free all rows."""
        for row in range(len(self._sequences)):
            self._cache.release(row)
        self._sequences.clear()

    def _run(self, plan: StepPlan) -> list[RowLogits]:
        start = time.perf_counter()
        rows = self._runner.run(plan)
        self.seconds = time.perf_counter() - start
        for sequence, row in zip(plan.sequences, rows, strict=True):
            sequence.num_computed += plan.num_tokens
            sequence.token_ids.append(int(row.top.ids[0] if row.top else row.read_all().argmax()))
        return rows
