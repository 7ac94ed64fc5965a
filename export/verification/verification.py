"""verify_artifact: is an artifact the model of its checkpoint? Start here to read this folder.

open both and compare what needs no computing -> hash the artifact's files -> run it over a text -> run the checkpoint's
layers -> compare predictions -> a verdict. Each step leaves its results in a folder, so a verification that is
interrupted is continued by the next one of the same artifact, checkpoint and text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwonnx.export.adapters.adapted_checkpoint import AdaptedCheckpoint, resolve_adapted
from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.formats.stored_weights import StoredWeights
from qwonnx.export.checkpoint.location import Access
from qwonnx.export.errors import VerificationError
from qwonnx.export.evaluation.decoder_session import DecoderSession, TokenIds
from qwonnx.export.evaluation.reference_model import quiet_transformers
from qwonnx.export.evaluation.verify import (
    MAX_TOKENS,
    SAMPLE_TEXT,
    verification_tokenizer,
    verification_tokens,
)
from qwonnx.export.pipeline import check_system
from qwonnx.export.verification.artifact_pass import LOGITS, STREAM, NotNumbersError, open_session, run_artifact
from qwonnx.export.verification.evidence import HEAD, Evidence, PartError, TextQuality
from qwonnx.export.verification.layer_errors import run_layers
from qwonnx.export.verification.merged_by_peft import merge_error, reason_against_peft
from qwonnx.export.verification.predictions import LogitSlice, Predictions, compare_predictions
from qwonnx.export.verification.progress import VerificationProgress
from qwonnx.export.verification.reference_layers import ReferenceLayers
from qwonnx.export.verification.result import Verification
from qwonnx.export.verification.text_files import compare_texts
from qwonnx.export.verification.token_budget import affordable_tokens, head_rows
from qwonnx.export.verification.verdict import Decision, different, judge
from qwonnx.export.verification.work_folder import WorkFolder, opened_work_folder, work_folder_of
from qwonnx.export.verification.written_text import WRITTEN_TOKENS, write_text
from qwonnx.runtime.artifact.file_names import is_weight_file
from qwonnx.runtime.artifact.folder import Artifact, file_sha256, open_artifact
from qwonnx.runtime.artifact.manifest import AdapterFacts
from qwonnx.runtime.machine import free_memory_bytes
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.quantities import bytes_text
from qwonnx.runtime.text.tokenizer import Tokenizer

_FALLBACK_BYTES = 4_000_000_000
_COMPARED_FACTS = ("num_hidden_layers", "layer_types", "hidden_size", "vocab_size", "num_experts")


@dataclass(frozen=True, slots=True)
class VerificationOptions:
    """How to verify.

    text: that both models read, at most MAX_TOKENS of its tokens. None: a fixed one, and one that the artifact writes
        if that is foreign to it.
    memory_bytes: for the weights and activations of a step. None: half of what is free.
    max_kl: the largest mean KL divergence, in nats, in the place of the recipe's bound.
    weights_file: the file or index that the export was told to read, see choose_files.
    kernels: that run the artifact's own operators.
    adapters: that the export merged, in their order. They are merged as the export does, while weights are read. If the
        whole model fits into the memory in float32, and peft is installed, its merge is compared with this one.
    revision: branch, tag or commit of a hub repository.
    offline: use of the hub only what its cache has.
    work: the folder for results of steps; None: `.NAME.verify` beside the artifact.
    """

    text: str | None = None
    memory_bytes: int | None = None
    max_kl: float | None = None
    weights_file: str | None = None
    kernels: Kernels = Kernels.AUTO
    adapters: tuple[str | os.PathLike[str], ...] = ()
    revision: str | None = None
    offline: bool = False
    work: Path | None = None


def verify_artifact(
    artifact: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    options: VerificationOptions | None = None,
    on_progress: Callable[[VerificationProgress], None] | None = None,
) -> Verification:
    """Compare an artifact with the checkpoint that it was exported from.

    Args:
        artifact: its folder.
        checkpoint: a folder, a GGUF file, a hub repo id, a URL, or an adapter's folder that names one of them.
        options: see VerificationOptions.
        on_progress: called repeatedly from this thread.

    Raises:
        NativeKernelsError: native kernels are asked for, and the artifact cannot have them here.
        ArtifactError: the artifact does not open: a file is missing or has another size.
        CheckpointError: the checkpoint does not open, or cannot be read.
        VerificationError: one of them cannot be run in this memory, or the text has fewer than two tokens.
        OutputError: the folder for results cannot be written.
        ExportError: this system cannot read checkpoints.
    """
    check_system()
    options = options or VerificationOptions()
    report = on_progress or (lambda progress: None)
    opened = open_artifact(artifact)
    access = Access(offline=options.offline)
    adapted = resolve_adapted(os.fspath(checkpoint), options.revision, options.weights_file, options.adapters, access)
    resolved = adapted.resolved
    if (reason := _other_model(opened, resolved.config)) is not None:
        return Verification(different(reason), None, 0, None, ())
    merged, given = opened.manifest.adapters, adapted.facts
    if len(merged) != len(given):
        return Verification(different(_other_adapters(merged, given)), None, 0, None, ())
    tokenizer = verification_tokenizer(opened)
    with resolved.naming():
        texts = compare_texts(opened, tokenizer, resolved, options.text or SAMPLE_TEXT)
    if texts.tokens is not None:
        return Verification(different(texts.tokens), None, 0, None, texts.notes)
    folder = options.work or work_folder_of(opened.folder)
    with opened_work_folder(folder, _fingerprint(opened, adapted, options)) as work, resolved.naming():
        is_same = [facts.sha256 for facts in merged] == [facts.sha256 for facts in given]
        notes = texts.notes if is_same else (*texts.notes, _other_adapters(merged, given))
        step = _Steps(opened, adapted, options, tokenizer, work, report, notes)
        verification = step.run()
        work.remove()
    return verification


class _Steps:
    """The steps of one verification, and what they share."""

    def __init__(
        self,
        artifact: Artifact,
        adapted: AdaptedCheckpoint,
        options: VerificationOptions,
        tokenizer: Tokenizer,
        work: WorkFolder,
        report: Callable[[VerificationProgress], None],
        notes: tuple[str, ...],
    ) -> None:
        self._artifact, self._adapted, self._options = artifact, adapted, options
        self._resolved, self._tokenizer, self._work, self._report = adapted.resolved, tokenizer, work, report
        self._notes = list(notes)
        self._memory = options.memory_bytes or (free_memory_bytes() or 2 * _FALLBACK_BYTES) // 2

    def run(self) -> Verification:
        if (damaged := self._hash()) is not None:
            reason = f"{damaged} differs from what the export wrote: the artifact is damaged, copy it again"
            return self._of(different(reason))
        try:
            said = self._run_artifact()
        except NotNumbersError as error:
            return self._of(different(str(error)))
        token_ids = np.array(said["tokens"], np.int64)
        evidence = self._layers(token_ids, has_stream=said["has_stream"])
        evidence = dataclasses.replace(evidence, predictions=evidence.predictions.at(np.array(said["compared"])))
        if evidence.text.is_flat or evidence.text.is_foreign:
            self._notes.append(_of_text(evidence.text, is_given=self._options.text is not None))
        decision = judge(evidence, self._artifact.manifest, self._options.max_kl, text=said["text"])
        return Verification(decision, evidence, len(token_ids), said["text"], tuple(self._notes))

    def _of(self, decision: Decision) -> Verification:
        """A decision before the checkpoint was run."""
        return Verification(decision, None, 0, None, tuple(self._notes))

    def _hash(self) -> str | None:
        """The first weight file that differs from the manifest; None if there is none."""
        entries = [entry for entry in self._artifact.manifest.files if is_weight_file(entry.path)]
        total, done = sum(entry.size for entry in entries), 0
        hashed: list[str] = list(self._work.done.get("hashed", ()))
        for entry in entries:
            if entry.path not in hashed:
                self._report(VerificationProgress("hash", done, total))
                if file_sha256(self._artifact.file(entry.path)) != entry.sha256:
                    return entry.path
                hashed.append(entry.path)
                self._work.note("hashed", hashed)
            done += entry.size
        return None

    def _run_artifact(self) -> dict[str, Any]:
        """Run the artifact over the text; what the record says of it."""
        if (said := self._work.done.get("artifact")) is not None:
            return dict(said)
        session, streams = open_session(self._artifact, self._options.kernels)
        self._check_memory_of(session)
        token_ids = verification_tokens(self._tokenizer, self._options.text or SAMPLE_TEXT)
        affordable = affordable_tokens(self._memory, self._resolved.config, MAX_TOKENS)
        kind = "built-in" if self._options.text is None else "given"
        token_ids = token_ids[:affordable]
        compared = np.arange(len(token_ids))
        names = self._read(session, streams, token_ids)
        if self._options.text is None and _is_foreign(self._work.array(LOGITS), token_ids):
            kind, count = "written by the artifact", min(WRITTEN_TOKENS, affordable)
            written = write_text(
                session,
                self._tokenizer,
                count,
                lambda done: self._report(VerificationProgress("write", done, count)),
            )
            token_ids, compared = written.token_ids, written.drawn_after
            names = self._read(session, streams, token_ids)
        said = {
            "tokens": token_ids.tolist(),
            "compared": compared.tolist(),
            "text": kind,
            "has_stream": STREAM in names,
        }
        self._work.finish_mapped("artifact", said, names)
        return said

    def _read(self, session: DecoderSession, streams: tuple[str, ...], token_ids: TokenIds) -> tuple[str, ...]:
        total = len(token_ids)
        self._report(VerificationProgress("artifact", 0, total))
        return run_artifact(
            session,
            streams,
            self._artifact,
            token_ids,
            self._work,
            self._memory,
            lambda done: self._report(VerificationProgress("artifact", done, total)),
        )

    def _layers(self, token_ids: TokenIds, *, has_stream: bool) -> Evidence:
        """The checkpoint with its adapters, layer by layer, and its predictions beside the artifact's."""
        config = self._resolved.config
        weights = self._adapted.weights or StoredWeights(self._resolved.tensors, config.quantization)
        with quiet_transformers():
            layers = ReferenceLayers(self._resolved.folder, config, weights, self._memory)
            begun = max(0, len(self._work.done.get("layers", ())) - 1)

            def report(done: int) -> None:
                self._report(VerificationProgress("layers", done, layers.num_layers, begun))

            found = run_layers(layers, token_ids, self._work, has_stream=has_stream, on_layers=report)
            reference = layers.final_norm(torch.from_numpy(found.hidden))
            own = None
            if has_stream:
                own = layers.final_norm(torch.from_numpy(np.array(self._work.array(STREAM)[-1])))
            predictions = compare_predictions(self._logits(layers, reference, own), token_ids)
            by_peft = self._merge_error(layers, reference, token_ids)
        parts = found.parts
        if predictions.head_error is not None:
            error = predictions.head_error
            parts = (*parts, PartError(HEAD, float(np.sqrt(np.square(error).mean())), float(np.median(error))))
        return Evidence(predictions, parts, found.peaks, found.experts_used, config.vocab_size, by_peft)

    def _logits(
        self, layers: ReferenceLayers, reference: torch.Tensor, own: torch.Tensor | None
    ) -> Iterator[LogitSlice]:
        """Of the head, slice by slice, on both models' last hidden states [T, hidden_size]."""
        artifact, total = self._work.array(LOGITS), self._resolved.config.vocab_size
        for rows, head in layers.head_slices(head_rows(self._memory, len(reference))):
            self._report(VerificationProgress("head", rows.start, total))
            yield LogitSlice(
                rows,
                (reference @ head.T).numpy(),
                np.array(artifact[:, rows]),
                None if own is None else (own @ head.T).numpy(),
            )

    def _merge_error(self, layers: ReferenceLayers, hidden: torch.Tensor, token_ids: TokenIds) -> float | None:
        """See Evidence.merge_error; hidden [T, hidden_size] is the input of the head."""
        if not self._adapted.adapters:
            return None
        reason = reason_against_peft(self._adapted, self._artifact.manifest.model.num_parameters, self._memory)
        if reason is not None:
            self._notes.append(f"adapters are merged as an export does it; peft did not repeat it here: {reason}")
            return None
        error = merge_error(self._adapted, layers, hidden, token_ids, self._memory, self._options.weights_file)
        self._notes.append(f"peft's merge of the adapters differs by {error:.1e} of the logits' spread")
        return error

    def _check_memory_of(self, session: DecoderSession) -> None:
        """Refuse kernels that copy more weights than the user allows."""
        weights = sum(entry.size for entry in self._artifact.manifest.files if is_weight_file(entry.path))
        if self._options.memory_bytes is not None and not session.maps_weights and weights > self._options.memory_bytes:
            raise VerificationError(
                f"ONNX Runtime's kernels copy the artifact's weights, {bytes_text(weights)}: allow more --memory, or"
                " use native kernels, which map them"
            )


def _other_model(artifact: Artifact, config: ModelConfig) -> str | None:
    """How the artifact's facts differ from config.json."""
    for name in _COMPARED_FACTS:
        ours, theirs = getattr(artifact.manifest.model, name), getattr(config, name)
        if ours != theirs:
            return f"its {name} is {_shown(ours)} and the checkpoint's {_shown(theirs)}"
    return None


def _other_adapters(merged: tuple[AdapterFacts, ...], given: tuple[AdapterFacts, ...]) -> str:
    """What to say if the export merged others than those of the comparison, or other files of these names."""
    ours, theirs = (
        ", ".join(f"{facts.name} ({facts.sha256[:8]})" for facts in adapters) or "no adapter"
        for adapters in (merged, given)
    )
    return f"the export merged {ours}, and this compares with {theirs}: give its adapters with --adapter"


def _shown(value: object) -> str:
    return str(value) if not isinstance(value, tuple) else ", ".join(map(str, value))[:80]


def _is_foreign(logits: np.ndarray[Any, np.dtype[np.float32]], token_ids: TokenIds) -> bool:
    """Whether the artifact finds a text absurd, by its predictions [T, vocab_size]."""
    return _quality(_alone(logits, token_ids), logits.shape[1]).is_foreign


def _alone(logits: np.ndarray[Any, np.dtype[np.float32]], token_ids: TokenIds) -> Predictions:
    def slices() -> Iterator[LogitSlice]:
        for start in range(0, logits.shape[1], 4096):
            rows = slice(start, min(start + 4096, logits.shape[1]))
            part = np.array(logits[:, rows])
            yield LogitSlice(rows, part, part)

    return compare_predictions(slices(), token_ids)


def _quality(predictions: Predictions, vocab_size: int) -> TextQuality:
    return TextQuality(float(predictions.surprise_checkpoint.mean()), float(predictions.entropy.mean()), vocab_size)


def _of_text(quality: TextQuality, *, is_given: bool) -> str:
    remedy = "give one like the model's later input" if is_given else "give one of the model's kind with --text"
    if quality.is_flat:
        return (
            f"the text tells nothing of predictions: the checkpoint finds nearly all tokens alike after it"
            f" (perplexity {np.exp(min(quality.surprise, 700)):,.0f}): {remedy}"
        )
    return (
        f"the text tells nothing of predictions: the checkpoint finds it absurd (perplexity"
        f" {np.exp(min(quality.surprise, 700)):,.0f}, and {np.exp(quality.entropy):,.1f} on texts that it expects):"
        f" {remedy}"
    )


def _fingerprint(artifact: Artifact, adapted: AdaptedCheckpoint, options: VerificationOptions) -> dict[str, Any]:
    """Everything that decides the results of steps."""
    text, resolved = options.text, adapted.resolved
    return {
        "qwonnx": version("qwonnx"),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "artifact": artifact.id,
        "artifact's files": {
            entry.path: os.stat(artifact.file(entry.path)).st_mtime_ns for entry in artifact.manifest.files
        },
        "checkpoint": {
            file.name: [file.size, str(file.version), file.header_sha256] for file in resolved.tensors.files
        },
        "config": repr(resolved.config),
        "text": None if text is None else hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest(),
        "kernels": str(options.kernels),
        "adapters": [dataclasses.asdict(facts) for facts in adapted.facts],
        "tokens": options.memory_bytes and affordable_tokens(options.memory_bytes, resolved.config, MAX_TOKENS),
    }
