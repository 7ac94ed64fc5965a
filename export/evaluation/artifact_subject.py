"""An artifact as a subject: the engine answers, and ONNX Runtime scores on plain arrays.

This module steps the engine itself, without a thread, and submits prompts in their order. So the same requests always
share a step: with int8 activations an answer may depend on this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qwonnx.export.errors import EvaluationError
from qwonnx.export.evaluation.decoder_session import DecoderChunk, DecoderSession
from qwonnx.export.evaluation.measures import token_scores
from qwonnx.export.evaluation.report import ModelRow
from qwonnx.export.evaluation.subject import (
    Answer,
    Prompt,
    Scored,
    SkippedError,
    answer_tokens,
    render,
    settle_max_tokens,
)
from qwonnx.export.evaluation.suite import Question
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.install import how_to_install
from qwonnx.runtime.machine import cpu_quota
from qwonnx.runtime.model import files as model_files
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from qwonnx.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from qwonnx.runtime.adapters.adapter_folder import AdapterFolder


class ArtifactSubject:
    """An artifact's folder.

    Args:
        folder: of the artifact.
        settings: of the engine; max_model_len follows from the prompts.
        adapter: the name of one of the settings' adapters, which answers; empty: the model itself.

    Raises:
        ArtifactError, TokenizerError, TemplateError, SessionError: see open_artifact and model_files.load.
    """

    def __init__(self, folder: Path, settings: RuntimeSettings, adapter: str = "") -> None:
        self._adapter = adapter
        self._files = model_files.load(open_artifact(folder))
        self._settings = settings
        manifest = self._files.artifact.manifest
        self._model = manifest.model
        quantization = manifest.quantization
        self.row = ModelRow(
            kind="artifact",
            name=manifest.source.checkpoint,
            id=self._files.artifact.id,
            weights=quantization.weights,
            target=manifest.target,
            activations=quantization.activations,
            kv=quantization.kv,
            max_num_seqs=settings.max_num_seqs,
        )
        self.notes: list[str] = []

    @property
    def tokenizer(self) -> Tokenizer:
        return self._files.tokenizer

    def prompt(self, question: Question, max_tokens: int | None) -> Prompt:
        if question.pictures:
            raise SkippedError("with pictures: artifacts read only text")
        rendered = render(self._files, question)
        ids = rendered.token_ids
        answer = answer_tokens(self.tokenizer, rendered.answer, self._files.eos_token_ids)
        settled = settle_max_tokens(len(ids), len(answer), max_tokens, self._model.max_position_embeddings)
        return Prompt(tuple(ids), answer, rendered.thinking_open, settled)

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        longest = max(len(prompt.token_ids) + prompt.max_tokens for prompt in prompts)
        waiting = iter(enumerate(prompts))
        finished: list[_Finished] = []
        with Engine(self._files, self._settings, longest) as engine:
            while True:
                # One more than can run: when a request ends, the next one starts in the same step.
                while engine.num_live_requests <= self._settings.max_num_seqs:
                    if (following := next(waiting, None)) is None:
                        break
                    index, prompt = following
                    params = SamplingParams(temperature=0, max_tokens=prompt.max_tokens)
                    engine.submit(prompt.token_ids, params, _collector(index, finished), adapter=self._adapter)
                if not engine.num_live_requests:
                    return
                engine.step()
                yield from ((one.index, one.answer()) for one in finished)
                finished.clear()

    def score(self, prompts: Sequence[Prompt]) -> Iterator[Scored]:
        session, routers = self._session()
        for prompt in prompts:
            ids = np.array(prompt.token_ids + prompt.answer_ids, np.int64)
            first = len(prompt.token_ids) - 1  # the position that predicts the answer's first token
            logits, counts = [], np.zeros((len(routers), self._model.num_experts), np.int64)
            for chunk in session.read(ids[:-1], np.arange(first, len(ids) - 1)):
                logits.append(chunk.logits)
                if len(chunk.wanted):
                    for layer, name in enumerate(routers):
                        counts[layer] += self._choices(chunk, chunk.others[name])
            targets = ids[first + 1 :]
            scores = token_scores(np.concatenate(logits), targets, self.tokenizer.num_tokens)
            hits = scores.likeliest == targets
            yield Scored(scores.surprise, hits, counts if routers else None, None)

    def _session(self) -> tuple[DecoderSession, tuple[str, ...]]:
        """The decoder, and the names of its routers' outputs, empty if they are not available."""
        artifact, threads = self._files.artifact, self._settings.num_threads or cpu_quota()
        kernels = Kernels(self._settings.kernels)
        adapter = self._adapter_folder()
        if self._model.num_experts:
            try:
                from qwonnx.export.evaluation.router_outputs import with_router_outputs
            except ModuleNotFoundError as error:
                self.notes.append(
                    f"expert usage is left out: {error.name} is not installed ({how_to_install('export')})"
                )
            else:
                routed = with_router_outputs(self._files.graph)
                session = DecoderSession(
                    artifact,
                    graph=routed.graph,
                    outputs=routed.outputs,
                    num_threads=threads,
                    kernels=kernels,
                    adapter=adapter,
                )
                return session, routed.outputs
        return DecoderSession(artifact, num_threads=threads, kernels=kernels, adapter=adapter), ()

    def _adapter_folder(self) -> AdapterFolder | None:
        if not self._adapter:
            return None
        from qwonnx.runtime.adapters.adapter_folder import AdapterFolder

        folders = dict(entry.split("=", 1) for entry in self._settings.adapters)
        targets = self._files.artifact.manifest.adapter_targets
        return AdapterFolder(self._adapter, Path(folders[self._adapter]), targets)

    def _choices(self, chunk: DecoderChunk, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """How often the wanted positions of a chunk chose each expert: int64 [experts]."""
        by_token = scores.reshape(-1, self._model.num_experts)
        # In the last layer only the wanted positions have scores.
        wanted = by_token if len(by_token) == len(chunk.wanted) else by_token[chunk.wanted]
        top = self._model.num_experts_per_tok
        chosen = np.argpartition(wanted, -top, axis=-1)[:, -top:]
        return np.bincount(chosen.ravel(), minlength=self._model.num_experts)


@dataclass(frozen=True, slots=True)
class _Finished:
    """An answer that has ended: the index of its prompt, its text, its last delta."""

    index: int
    text: str
    last: RequestOutput

    def answer(self) -> Answer:
        if self.last.finish_reason is FinishReason.ERROR:
            raise EvaluationError(f"the model failed ({self.last.error}): export the checkpoint again, or report this")
        return Answer(self.text, self.last.num_generated_tokens, self.last.finish_reason is FinishReason.STOP)


def _collector(index: int, finished: list[_Finished]) -> Callable[[RequestOutput], None]:
    """A callback that joins the deltas of one answer, and appends the answer to `finished` when it ends."""
    texts: list[str] = []

    def collect(output: RequestOutput) -> None:
        texts.append(output.text)
        if output.finish_reason is not None:
            finished.append(_Finished(index, "".join(texts), output))

    return collect
