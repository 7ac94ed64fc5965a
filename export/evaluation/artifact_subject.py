"""An artifact as a subject: answers by the engine, as it serves; scores by ONNX Runtime on plain arrays.

The engine is stepped here rather than on its own thread, and gets its prompts in their order, so that what runs
together in a step is always the same: with int8 activations an answer may depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.machine import cpu_quota
from qwonnx.runtime.model import files as model_files
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from qwonnx.runtime.text.tokenizer import Tokenizer


class ArtifactSubject:
    """An artifact's folder.

    Args:
        folder: of the artifact.
        settings: of the engine, but for max_model_len, which is what the prompts need.

    Raises:
        ArtifactError, TokenizerError, TemplateError, SessionError: see model_files.load.
    """

    def __init__(self, folder: Path, settings: RuntimeSettings) -> None:
        self._files = model_files.load(folder)
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
            raise SkippedError("with pictures: artifacts read text alone")
        rendered = render(self._files, question)
        ids = self.tokenizer.encode(rendered.prompt)
        answer = answer_tokens(self.tokenizer, rendered.answer, self._files.eos_token_ids)
        settled = settle_max_tokens(len(ids), len(answer), max_tokens, self._model.max_position_embeddings)
        return Prompt(tuple(ids), answer, rendered.thinking_open, settled)

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        longest = max(len(prompt.token_ids) + prompt.max_tokens for prompt in prompts)
        waiting = iter(enumerate(prompts))
        finished: list[_Finished] = []
        with Engine(self._files, self._settings, longest) as engine:
            while True:
                # One more than can run: whoever ends makes room for the next within the same step.
                while engine.num_live_requests <= self._settings.max_num_seqs:
                    if (following := next(waiting, None)) is None:
                        break
                    index, prompt = following
                    params = SamplingParams(temperature=0, max_tokens=prompt.max_tokens)
                    engine.submit(prompt.token_ids, params, _collector(index, finished))
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
        """The decoder, and the names of its routers' outputs, of which there are none where they cannot be had."""
        artifact, threads = self._files.artifact, self._settings.num_threads or cpu_quota()
        if self._model.num_experts:
            try:
                from qwonnx.export.evaluation.router_outputs import with_router_outputs
            except ModuleNotFoundError as error:
                self.notes.append(
                    f'expert usage is left out: {error.name} is not installed (pip install "qwonnx[export]")'
                )
            else:
                routed = with_router_outputs(self._files.graph)
                session = DecoderSession(artifact, graph=routed.graph, outputs=routed.outputs, num_threads=threads)
                return session, routed.outputs
        return DecoderSession(artifact, num_threads=threads), ()

    def _choices(self, chunk: DecoderChunk, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """How often the wanted positions of a chunk chose each expert: int64 [experts]."""
        by_token = scores.reshape(-1, self._model.num_experts)
        # The last layer goes on with the wanted positions alone.
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
    """Gathers the deltas of one answer, and puts it among the finished ones when it ends."""
    texts: list[str] = []

    def collect(output: RequestOutput) -> None:
        texts.append(output.text)
        if output.finish_reason is not None:
            finished.append(_Finished(index, "".join(texts), output))

    return collect
