"""Runs the artifact over the text by ONNX Runtime, and keeps its logits and its residual stream for later steps.

The native kernels map weight files, so weights are clean pages that the system takes back: an artifact of any size runs
in the memory of a chunk. Kernels of ONNX Runtime copy weights; then the artifact's bytes count as memory.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qwonnx.export.errors import VerificationError
from qwonnx.export.evaluation.decoder_session import CHUNK_TOKENS, DecoderSession, TokenIds
from qwonnx.export.verification.residual_outputs import with_residual_outputs
from qwonnx.export.verification.work_folder import WorkFolder
from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.native.kernels import Kernels

LOGITS, STREAM = "artifact-logits", "artifact-stream"

# A chunk's logits, their copy by ONNX Runtime, and what computes them.
_LOGITS_BYTES = 12


class NotNumbersError(VerificationError):
    """An artifact runs, and predicts values that are not numbers."""


def chunk_tokens(memory_bytes: int, vocab_size: int) -> int:
    """Tokens of a chunk whose logits take at most half of the memory."""
    return max(1, min(CHUNK_TOKENS, memory_bytes // 2 // (_LOGITS_BYTES * vocab_size)))


def open_session(artifact: Artifact, kernels: Kernels) -> tuple[DecoderSession, tuple[str, ...]]:
    """A session, and the names of its residual stream: none if the graph does not show it.

    Raises:
        VerificationError, NativeKernelsError: see DecoderSession.
    """
    watched = with_residual_outputs(artifact.file(artifact.decoder.file), artifact.manifest.model.num_hidden_layers)
    if watched is None:
        return DecoderSession(artifact, kernels=kernels), ()
    return DecoderSession(artifact, graph=watched.graph, outputs=watched.outputs, kernels=kernels), watched.outputs


def run_artifact(
    session: DecoderSession,
    streams: tuple[str, ...],
    artifact: Artifact,
    token_ids: TokenIds,
    work: WorkFolder,
    memory_bytes: int,
    on_tokens: Callable[[int], None],
) -> tuple[str, ...]:
    """Fill the folder's arrays LOGITS float32 [T, vocab_size] and STREAM float32 [layers + 1, T, hidden_size].

    Args:
        session, streams: of open_session.
        artifact: that it runs.
        token_ids: int64 [T].
        work: for the arrays.
        memory_bytes: that logits of a chunk and their copies may take half of.
        on_tokens: called with the number of tokens that were read.

    Returns:
        the names of the arrays.

    Raises:
        VerificationError: it cannot be run.
        NotNumbersError: it predicts values that are not numbers.
    """
    facts, num_tokens = artifact.manifest.model, len(token_ids)
    logits = work.mapped(LOGITS, (num_tokens, facts.vocab_size))
    stream = work.mapped(STREAM, (len(streams), num_tokens, facts.hidden_size)) if streams else None
    size, start = chunk_tokens(memory_bytes, facts.vocab_size), 0
    for chunk in session.read(token_ids, np.arange(num_tokens), size):
        here = slice(start, start + chunk.num_tokens)
        if not np.isfinite(chunk.logits).all():
            raise NotNumbersError("it predicts values that are not numbers: export the checkpoint again")
        logits[here] = chunk.logits
        if stream is not None:
            for layer, name in enumerate(streams):
                stream[layer, here] = chunk.others[name][0]
        start = here.stop
        on_tokens(start)
    return (LOGITS,) if stream is None else (LOGITS, STREAM)
