"""Runs an artifact's decoder on plain arrays: one session reads sequences in chunks, with states that start at zero.

It uses ONNX Runtime without the runtime's pools and bindings, so it also checks those. It needs neither torch nor onnx.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qwonnx.export.errors import VerificationError, first_line
from qwonnx.runtime.artifact.file_names import ADAPTER_SLOTS, ADAPTERS
from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.artifact.manifest import slot_width
from qwonnx.runtime.native.choice import choose_kernels
from qwonnx.runtime.native.kernels import Kernels

if TYPE_CHECKING:
    from qwonnx.runtime.adapters.adapter_folder import AdapterFolder

Logits = npt.NDArray[np.float32]  # [num_tokens, vocab_size]
TokenIds = npt.NDArray[np.int64]  # [num_tokens]

DEVICE_TARGETS = ("cuda", "rtx")  # whose graphs this module does not run
CHUNK_TOKENS = 256  # all their logits take 254 MB at the real vocabulary


@dataclass(frozen=True, slots=True)
class DecoderChunk:
    """The result of one chunk of a sequence.

    wanted: int64 [n], the places in the chunk with requested logits, ascending.
    logits: float32 [n, vocab_size], at those places.
    others: the other requested outputs by name, as the graph yields them.
    num_tokens: of the chunk.
    """

    wanted: TokenIds
    logits: Logits
    others: dict[str, npt.NDArray[np.float32]]
    num_tokens: int


def _slots(artifact: Artifact, adapter: AdapterFolder | None) -> dict[str, npt.NDArray[Any]]:
    """The inputs of a graph that takes adapters: slot 0 is none, and slot 1 has the adapter."""
    targets = artifact.manifest.adapter_targets
    if not targets:
        return {}
    numbers = np.zeros((1 + (adapter is not None), slot_width(targets), adapter.rank if adapter else 1), np.float32)
    if adapter is not None:
        adapter.write(numbers[1])
    return {ADAPTER_SLOTS: np.array([len(numbers) - 1]), ADAPTERS: numbers}


class DecoderSession:
    """One loaded decoder, for any number of sequences, one after another.

    Args:
        artifact: an opened artifact.
        graph: the decoder's ONNX model with more outputs, serialised; its weights lie in the artifact's folder. None:
            the artifact's own.
        outputs: names of those outputs.
        num_threads: of ONNX Runtime; None: one for each physical core.
        kernels: that run the graph's own operators.
        adapter: that all tokens are read with, if the graph takes adapters.

    Raises:
        NativeKernelsError: native kernels are asked for, and this graph cannot have them here.
        ManifestError: the artifact has no decoder.
        VerificationError: ONNX Runtime cannot load it.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        graph: bytes | None = None,
        outputs: Sequence[str] = (),
        num_threads: int | None = None,
        kernels: Kernels = Kernels.AUTO,
        adapter: AdapterFolder | None = None,
    ) -> None:
        import onnxruntime

        if artifact.manifest.target in DEVICE_TARGETS:
            raise VerificationError(
                f"{artifact.folder} is for {artifact.manifest.target.upper()} and this command reads graphs on the CPU:"
                " give an artifact for the CPU"
            )
        if not artifact.manifest.stage.is_whole:
            raise VerificationError(f"{artifact.folder} is a stage, and this command reads whole models: give one")
        self._artifact = artifact
        self._outputs = tuple(outputs)
        self._adapters = _slots(artifact, adapter)
        file = artifact.file(artifact.decoder.file)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # every logged error is also raised
        options.intra_op_num_threads = num_threads or 0
        if graph is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
        chosen = choose_kernels(kernels, artifact.decoder.native_operators, onnxruntime.SessionOptions)
        self.maps_weights = chosen.library is not None  # ONNX Runtime's kernels copy them
        if chosen.library:
            chosen.library.register(options)
        with self._errors():
            self._session: Any = onnxruntime.InferenceSession(
                str(file) if graph is None else graph, options, providers=["CPUExecutionProvider"]
            )

    def read(self, token_ids: TokenIds, wanted: TokenIds, chunk_tokens: int = CHUNK_TOKENS) -> Iterator[DecoderChunk]:
        """Read one sequence, and yield after each chunk.

        Args:
            token_ids: int64 [num_tokens].
            wanted: int64, the positions whose logits are wanted, in ascending order.
            chunk_tokens: tokens of each chunk but the last.

        Raises:
            VerificationError: ONNX Runtime cannot run the graph.
        """
        sequence = self.begin(len(token_ids))
        for start in range(0, len(token_ids), chunk_tokens):
            chunk = token_ids[start : start + chunk_tokens]
            places = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + len(chunk))] - start
            yield sequence.extend(chunk, places)

    def begin(self, capacity: int) -> GrowingSequence:
        """An empty sequence of at most `capacity` tokens.

        Raises:
            VerificationError: ONNX Runtime cannot run the graph.
        """
        sizes = {"batch": 1, "max_model_len": capacity}
        with self._errors():
            states = {
                spec.past: np.zeros([size if isinstance(size, int) else sizes[size] for size in spec.shape], spec.dtype)
                for spec in self._artifact.decoder.states
            }
        return GrowingSequence(self, states)

    def _step(self, chunk: TokenIds, start: int, places: TokenIds, states: dict[str, Any]) -> tuple[Any, ...]:
        """Read tokens after `start` others. Returns logits, the other requested outputs by name, and the new states."""
        names = ["logits", *self._outputs, *(spec.present for spec in self._artifact.decoder.states)]
        feeds: dict[str, Any] = {
            "input_ids": chunk[None],
            "position_ids": np.broadcast_to(np.arange(start, start + len(chunk)), (3, 1, len(chunk))),
            "positions": np.arange(start, start + len(chunk))[None],
            "past_lengths": np.array([start]),
            "last_positions": np.array([start + len(chunk) - 1], np.int32),
            "total_sequence_length": np.array(start + len(chunk), np.int32),
            "logit_positions": places,
            **self._adapters,
        }
        feeds = {spec.name: feeds[spec.name] for spec in self._artifact.decoder.inputs}
        with self._errors():
            logits, *arrays = self._session.run(names, {**feeds, **states})
        others = dict(zip(self._outputs, arrays, strict=False))
        return logits[0], others, dict(zip(states, arrays[len(others) :], strict=True))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # ONNX Runtime has many exception types
            raise VerificationError(
                f"ONNX Runtime cannot run {self._artifact.folder} ({first_line(error)}): export the checkpoint again"
            ) from error


class GrowingSequence:
    """One sequence, and the states after its last token: see DecoderSession.begin."""

    def __init__(self, session: DecoderSession, states: dict[str, Any]) -> None:
        self._session, self._states = session, states
        self._num_tokens = 0

    def extend(self, token_ids: TokenIds, wanted: TokenIds) -> DecoderChunk:
        """Read more tokens.

        Args:
            token_ids: int64 [n].
            wanted: int64, their places among these whose logits are wanted, in ascending order.

        Raises:
            VerificationError: ONNX Runtime cannot run the graph.
        """
        logits, others, self._states = self._session._step(token_ids, self._num_tokens, wanted, self._states)
        self._num_tokens += len(token_ids)
        return DecoderChunk(wanted, logits, others, len(token_ids))
