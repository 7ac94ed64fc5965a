"""A stage in a process of its own: it has its layers' weights, session and rows, and serves one engine at a time.

A connection begins with fresh rows. Nothing that an engine says is used before it is checked: numbers of rows, tokens
and segments, and sizes of arrays.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Sequence

import numpy as np

from qwonnx.runtime.artifact.file_names import DECODER, HIDDEN_STATES, NEXT_HIDDEN_STATES
from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.artifact.manifest import StateSpec, manifest_text
from qwonnx.runtime.cache.buffers import RowBinding, Segment
from qwonnx.runtime.cache.host_buffers import HostBuffers
from qwonnx.runtime.cache.rows import RowMove, row_bytes
from qwonnx.runtime.errors import SessionError, SettingsError
from qwonnx.runtime.model import expert_uses
from qwonnx.runtime.model.opening import open_model
from qwonnx.runtime.model.session import Session
from qwonnx.runtime.model.stages.address import tune
from qwonnx.runtime.model.stages.operations import Code, Operation, unpacked
from qwonnx.runtime.model.stages.step import StageLimits, StageStep
from qwonnx.runtime.model.stages.wire import Frames, Kind, Part, WireError, greet
from qwonnx.runtime.model.weight_memory import WeightMemory
from qwonnx.runtime.settings import RuntimeSettings

logger = logging.getLogger(__name__)

_HANDSHAKE_SECONDS = 5.0
_SILENCE_SECONDS = 30.0  # an engine that lives says something every two seconds
_OPEN_BYTES = 4096
_OPERATIONS_BYTES = 1 << 20
_MAX_ROWS = 1025
_MAX_STEP_TOKENS = 1 << 20


class StageServer:
    """One stage, loaded. serve() answers engines until close().

    Args:
        artifact: a stage, not the first one.
        settings: threads, kernels, memory and the key.

    Raises:
        SettingsError: the artifact is no such stage, or a setting cannot be met.
        ArtifactError, SessionError, NativeKernelsError: it cannot be opened.
    """

    def __init__(self, artifact: Artifact, settings: RuntimeSettings) -> None:
        facts = artifact.manifest.stage
        if facts.is_whole or facts.number == 1:
            what = "the whole model" if facts.is_whole else f"stage 1 of {facts.count}"
            raise SettingsError(f"{artifact.folder} is {what}: open it with `qwonnx serve`, and give stages 2, 3, ...")
        self.name = f"stage {facts.number} of {facts.count}"
        self._artifact, self._settings = artifact, settings
        opened = open_model(artifact, settings, artifact.manifest.model.max_position_embeddings)
        if opened.placement.device is not None:
            raise SettingsError("stages run on the CPU: leave the device out")
        self._weights, self._session = opened.weights, opened.session
        _check_graph(self._session, artifact)
        self._memory = WeightMemory(self._weights, self._session.experts, settings, expert_uses.load(artifact))
        self._memory.start()
        self._closing = threading.Event()
        self._frames: Frames | None = None

    def serve(self, listener: socket.socket) -> None:
        """Answer one engine after the other. Returns after close()."""
        listener.settimeout(0.2)
        while not self._closing.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(_HANDSHAKE_SECONDS)
            tune(connection)
            self._frames = Frames(connection)
            try:
                self._talk(self._frames)
            except WireError as error:
                logger.info("%s: the engine's connection ended (%s)", self.name, error)
            finally:
                self._frames.close()

    def close(self) -> None:
        """Have serve() return after the frame that it works on, and free the weights' files. From any thread."""
        self._closing.set()
        self._memory.close()

    def _talk(self, frames: Frames) -> None:
        """
        Raises:
            WireError: the engine left, or said something that is not allowed.
        """
        greet(frames, self._settings.stage_key, manifest_text(self._artifact.manifest))
        frames.settimeout(_SILENCE_SECONDS)
        try:
            kind, parts = frames.receive(_OPEN_BYTES)
            if kind is not Kind.OPEN or len(parts) != 2:
                raise WireError("it does not say how many rows it needs")
            rows = _Rows(self._artifact, self._session, self._limits(parts[1]))
            frames.send(Kind.DONE)
            logger.info("%s: an engine is connected", self.name)
            while not self._closing.is_set():
                kind, parts = frames.receive(rows.max_bytes)
                self._answer(frames, rows, kind, parts)
        except (WireError, MemoryError) as error:
            reason = "there is no memory for it" if isinstance(error, MemoryError) else str(error)
            frames.send(Kind.BROKEN, [f"the stage refuses: {reason}".encode()])
            raise WireError(reason) from error

    def _answer(self, frames: Frames, rows: _Rows, kind: Kind, parts: Sequence[memoryview]) -> None:
        if not parts:
            raise WireError("it sends an empty frame")
        rows.apply(unpacked(parts[0]))
        if kind is Kind.STEP:
            try:
                self._weights.check()
                self._memory.adjust()
                result = rows.step(parts[1:])
            except SessionError as error:
                frames.send(Kind.FAILED, [str(error).encode()])
                return
            frames.send(Kind.DONE, [result])
        elif kind is Kind.PING:
            frames.send(Kind.DONE)
        elif kind is Kind.FETCH:
            frames.send(Kind.DONE, rows.fetch(parts[1:]))
        elif kind is Kind.STORE:
            rows.store(parts[1:])
            frames.send(Kind.DONE)
        else:
            raise WireError(f"it sends {kind.name}, which is not expected now")

    def _limits(self, part: Part) -> StageLimits:
        limits, facts = StageLimits.unpacked(part), self._artifact.manifest.model
        fits = 1 <= limits.num_rows <= _MAX_ROWS and 1 <= limits.max_tokens <= _MAX_STEP_TOKENS
        if not fits or not 1 <= limits.max_model_len <= facts.max_position_embeddings:
            raise WireError(f"it asks for {limits}, which is out of range")
        return limits


class _Rows:
    """The rows and segments of one connection."""

    def __init__(self, artifact: Artifact, session: Session, limits: StageLimits) -> None:
        self._session, self._limits = session, limits
        self._states: tuple[StateSpec, ...] = artifact.decoder.states
        self._model = artifact.manifest.model
        self._is_last = artifact.manifest.stage.number == artifact.manifest.stage.count
        self._buffers = HostBuffers(self._states, limits.num_rows, limits.max_model_len)
        self._bindings: dict[tuple[int, int], RowBinding] = {}
        self._segments: dict[int, Segment] = {}
        self._restoring: list[Segment] = []
        step = limits.max_tokens * (4 * self._model.hidden_size + 16)
        row = sum(row_bytes(spec, limits.max_model_len) for spec in self._states)
        self.max_bytes = max(step, row) + _OPERATIONS_BYTES

    def apply(self, operations: Sequence[Operation]) -> None:
        """
        Raises:
            WireError: a row, a range or a segment does not exist.
        """
        for operation in operations:
            self._apply(operation)

    def _apply(self, operation: Operation) -> None:
        code, a, b, c, d = operation
        match code:
            case Code.CLEAR:
                self._buffers.clear(self._row(a))
            case Code.MOVE:
                self._buffers.move(RowMove(self._row(a), self._row(b), self._place(c)))
            case Code.DISCARD:
                self._buffers.discard(self._row(a), *self._range(b, c))
            case Code.DISCARD_STATES:
                self._buffers.discard_states(self._row(a))
            case Code.COPY_OUT:
                self._segments[d] = self._buffers.copy_out(self._row(a), *self._range(b, c))
            case Code.RESTORE:
                self._restoring.append(self._segment(b))
                if c:
                    segments, self._restoring = self._restoring, []
                    self._place(sum(segment.num_tokens for segment in segments))
                    self._buffers.restore(self._row(a), segments)
            case Code.DROP:
                self._segments.pop(a, None)

    def step(self, parts: Sequence[memoryview]) -> bytes:
        """Run a step.

        Returns:
            the logits [rows, num_logits, vocab_size] of the last stage, or hidden states [rows, width, hidden_size].

        Raises:
            WireError: the step is malformed.
            SessionError: the graph failed.
        """
        step = StageStep.unpacked(parts, self._limits, self._model.hidden_size)
        rows, width = step.input_ids.shape
        key = step.first_row, rows
        if key not in self._bindings:
            self._bindings[key] = self._buffers.bind(self._session.new_binding(), *key)
        binding = self._bindings[key]
        positions = step.past_lengths[:, None] + np.arange(width)
        given = {
            "input_ids": step.input_ids,
            "position_ids": np.ascontiguousarray(np.broadcast_to(positions, (3, rows, width))),
            "past_lengths": step.past_lengths,
            "logit_positions": np.full(step.num_logits, width - 1, np.int64),
            HIDDEN_STATES: step.hidden_states,
        }
        for name in given.keys() & self._session.inputs.keys():
            binding.bind_input(name, given[name])
        shape = (rows, step.num_logits, self._model.vocab_size) if self._is_last else step.hidden_states.shape
        output = np.empty(shape, np.float32)
        binding.bind_output("logits" if self._is_last else NEXT_HIDDEN_STATES, output)
        binding.run(self._session)
        return output.astype("<f4", copy=False).tobytes()

    def fetch(self, parts: Sequence[memoryview]) -> list[Part]:
        """The content of consecutive segments, one part a state."""
        if len(parts) != 1 or not len(parts[0]) or len(parts[0]) % 8:
            raise WireError("it names no segments")
        segments = [self._segment(number) for number in np.frombuffer(parts[0], "<i8").tolist()]
        self._place(sum(segment.num_tokens for segment in segments))
        return list(self._buffers.to_host(segments))

    def store(self, parts: Sequence[memoryview]) -> None:
        """Keep bytes as a segment."""
        if not parts or len(parts[0]) != 16:
            raise WireError("it sends a malformed segment")
        number, num_tokens = np.frombuffer(parts[0], "<i8").tolist()
        sizes = [row_bytes(spec, self._place(num_tokens)) for spec in self._states]
        if [len(part) for part in parts[1:]] != sizes:
            raise WireError("it sends a segment of another size")
        self._segments[number] = self._buffers.from_host(num_tokens, parts[1:])

    def _row(self, row: int) -> int:
        if not 0 <= row < self._limits.num_rows:
            raise WireError(f"it names row {row}, and there are {self._limits.num_rows}")
        return row

    def _place(self, num_tokens: int) -> int:
        if not 0 <= num_tokens <= self._limits.max_model_len:
            raise WireError(f"it names {num_tokens} tokens, and a row has room for {self._limits.max_model_len}")
        return num_tokens

    def _range(self, start: int, end: int) -> tuple[int, int]:
        if self._place(start) > self._place(end):
            raise WireError(f"it names the tokens {start} to {end}")
        return start, end

    def _segment(self, number: int) -> Segment:
        if number not in self._segments:
            raise WireError(f"it names segment {number}, which is not here")
        return self._segments[number]


def _check_graph(session: Session, artifact: Artifact) -> None:
    """Refuse a graph whose inputs and outputs are not a stage's: buffers are bound by the manifest's shapes.

    Raises:
        SessionError: they are others.
    """
    spec, facts = artifact.manifest.graphs[DECODER], artifact.manifest.stage
    is_last = facts.number == facts.count
    inputs = {"input_ids", "position_ids", "past_lengths", HIDDEN_STATES} | ({"logit_positions"} if is_last else set())
    outputs = {"logits" if is_last else NEXT_HIDDEN_STATES}
    sound = session.inputs.keys() == inputs | {state.past for state in spec.states}
    sound &= session.outputs.keys() == outputs | {state.present for state in spec.states}
    for state in spec.states if sound else ():
        found = session.inputs[state.past]
        sound &= found.dtype == state.dtype
        sound &= found.shape == tuple(size if isinstance(size, int) else None for size in state.shape)
    if not sound:
        raise SessionError("the stage's inputs or outputs are not the manifest's: export again")
