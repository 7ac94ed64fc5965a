"""A checkpoint as a subject: transformers in float32, one question after another, and the draft head if it has one.

Only the model differs from an artifact: the runtime's own modules read the chat template, the tokenizer and the end
tokens, and ids without a token are never generated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qwonnx.export.checkpoint.text_files import check_text_files
from qwonnx.export.evaluation.measures import TokenScores, token_scores
from qwonnx.export.evaluation.picture_reader import PictureReader
from qwonnx.export.evaluation.report import ModelRow
from qwonnx.export.evaluation.subject import (
    Answer,
    Drafts,
    Prompt,
    Scored,
    SkippedError,
    answer_tokens,
    render,
    settle_max_tokens,
)
from qwonnx.export.evaluation.suite import Question
from qwonnx.runtime.text.detokenizer import Detokenizer
from qwonnx.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_ROWS = 64  # of logits at a time: 64 MB at the real vocabulary


@dataclass(frozen=True, slots=True)
class _States:
    """One sequence in the text model."""

    embedded: Tensor  # float32 [1, T, H], the model's input
    final: Tensor  # float32 [1, T, H], after the last norm
    position_ids: Tensor  # int64 [3, 1, T]


class CheckpointSubject:
    """A checkpoint's folder, or a hub repository.

    Args:
        name_or_path: of the checkpoint.
        num_threads: of torch; None: torch's choice.
        pictures: some questions have pictures; the vision tower is loaded if the checkpoint can read them.
        weights_file: see choose_files.

    Raises:
        CheckpointError, VerificationError: it does not open, or transformers does not load it.
        TokenizerError, TemplateError, InvalidRequestError: a text file of the checkpoint cannot be used.
    """

    def __init__(
        self, name_or_path: str, num_threads: int | None, *, pictures: bool, weights_file: str | None = None
    ) -> None:
        import torch

        from qwonnx.export.checkpoint.formats.stored_weights import StoredWeights
        from qwonnx.export.checkpoint.resolved_checkpoint import resolve_checkpoint
        from qwonnx.export.evaluation.reference_model import load_reference_model, quiet_transformers
        from qwonnx.export.evaluation.reference_mtp import load_mtp_head

        if num_threads is not None:
            torch.set_num_threads(num_threads)
        resolved = resolve_checkpoint(name_or_path, None, weights_file)
        folder = resolved.whole_folder
        config = resolved.config
        self._files = check_text_files(folder, config.vocab_size)
        self._longest = config.max_position_embeddings
        self._num_experts = config.num_experts
        self._no_tokens = list(range(self._files.tokenizer.num_tokens, config.vocab_size))
        self.row = ModelRow(
            kind="checkpoint",
            name=resolved.source.checkpoint,
            id=resolved.source.revision,
            weights=resolved.source.dtype,
            target="transformers",
            activations="float32",
            kv="float32",
            max_num_seqs=1,
        )
        self.notes: list[str] = []
        self._pictures: PictureReader | str = "with pictures"  # a str is the reason for no reader
        with quiet_transformers():
            if pictures:
                self._pictures = _picture_reader(folder)
            sees = isinstance(self._pictures, PictureReader)
            self._model = load_reference_model(folder, weights_file, pictures=sees)
        self._text_model = self._model.model.language_model if sees else self._model.model
        self._head = load_mtp_head(self._text_model, StoredWeights(resolved.tensors, config.quantization))
        self._chosen: dict[int, Tensor] = {}  # by layer, int64 [T, top_k]: experts chosen in the last run
        for layer, block in enumerate(self._text_model.layers if self._num_experts else ()):
            block.mlp.gate.register_forward_hook(self._watch(layer))

    @property
    def tokenizer(self) -> Tokenizer:
        return self._files.tokenizer

    def prompt(self, question: Question, max_tokens: int | None) -> Prompt:
        rendered = render(self._files, question)
        ids, pictures = rendered.token_ids, None
        if question.pictures:
            if isinstance(self._pictures, str):
                raise SkippedError(self._pictures)
            ids, pictures = self._pictures.read(ids, question.pictures)
        answer = answer_tokens(self.tokenizer, rendered.answer, self._files.eos_token_ids)
        settled = settle_max_tokens(len(ids), len(answer), max_tokens, self._longest)
        return Prompt(tuple(ids), answer, rendered.thinking_open, settled, pictures)

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        import torch
        from transformers import GenerationConfig

        from qwonnx.export.evaluation.reference_model import quiet_transformers

        # generate() would fill unset fields from the checkpoint's own configuration, which is for sampling.
        self._model.generation_config = GenerationConfig()
        for index, prompt in enumerate(prompts):
            ids = torch.tensor([prompt.token_ids])
            greedy = GenerationConfig(
                do_sample=False,
                max_new_tokens=prompt.max_tokens,
                eos_token_id=sorted(self._files.eos_token_ids),
                pad_token_id=min(self._files.eos_token_ids),
                suppress_tokens=self._no_tokens or None,
            )
            arguments = self._picture_arguments(ids, prompt)
            with quiet_transformers(), torch.no_grad():
                whole = self._model.generate(
                    ids, attention_mask=torch.ones_like(ids), generation_config=greedy, **arguments
                )
            yield index, self._answer(whole[0, ids.shape[1] :].tolist())

    def score(self, prompts: Sequence[Prompt]) -> Iterator[Scored]:
        import torch

        from qwonnx.export.evaluation.reference_model import quiet_transformers

        for prompt in prompts:
            ids = torch.tensor([prompt.token_ids + prompt.answer_ids])
            first, last = len(prompt.token_ids) - 1, ids.shape[1] - 1
            with quiet_transformers(), torch.no_grad():
                states = self._states(ids, prompt)
                scores = self._token_scores(states.final[0, first:last], ids[0, first + 1 :].numpy())
                hits = scores.likeliest == ids[0, first + 1 :].numpy()
                drafts = self._drafts(states, first, scores)
            yield Scored(scores.surprise, hits, self._counts(first, last), drafts)

    def _answer(self, token_ids: list[int]) -> Answer:
        """An answer up to its end token. An incomplete character at its end has no text, as in the engine."""
        detokenizer, text = Detokenizer(self.tokenizer), ""
        for place, token in enumerate(token_ids):
            if token in self._files.eos_token_ids:
                return Answer(text, place + 1, is_complete=True)
            text += detokenizer.push(token)
        return Answer(text, len(token_ids), is_complete=False)

    def _states(self, ids: Tensor, prompt: Prompt) -> _States:
        import torch

        if prompt.pictures is None:
            embedded = self._text_model.embed_tokens(ids)
            final = self._text_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
            return _States(embedded, final, positions)
        read: dict[str, Any] = {}  # arguments from the whole model to the text model, pictures embedded

        def watch(module: object, arguments: tuple[object, ...], named: dict[str, Any]) -> None:
            read.update(named)

        hook = self._text_model.register_forward_pre_hook(watch, with_kwargs=True)
        try:
            output = self._model.model(input_ids=ids, use_cache=False, **self._picture_arguments(ids, prompt))
        finally:
            hook.remove()
        return _States(read["inputs_embeds"], output.last_hidden_state, read["position_ids"][-3:])

    def _token_scores(self, states: Tensor, targets: npt.NDArray[np.int64]) -> TokenScores:
        """Scores of tokens [n] after states [n, H]."""
        head, num_tokens = self._model.get_output_embeddings(), self.tokenizer.num_tokens
        blocks = [slice(start, start + _BLOCK_ROWS) for start in range(0, len(targets), _BLOCK_ROWS)]
        parts = [token_scores(head(states[block]).numpy(), targets[block], num_tokens) for block in blocks]
        return TokenScores(
            np.concatenate([part.surprise for part in parts]), np.concatenate([part.likeliest for part in parts])
        )

    def _counts(self, first: int, last: int) -> npt.NDArray[np.int64] | None:
        """How often positions first to last - 1 of the last run chose each expert: int64 [layers, experts]."""
        if not self._num_experts:
            return None
        chosen = (self._chosen[layer][first:last].flatten().numpy() for layer in sorted(self._chosen))
        return np.stack([np.bincount(experts, minlength=self._num_experts) for experts in chosen])

    def _drafts(self, states: _States, first: int, scores: TokenScores) -> Drafts | None:
        """Compare the head's draft of each answer token but the first with the model's likeliest token.

        Row t of the head has read token t + 1 and drafts token t + 2; the model predicts that token at position t + 1.
        The prompt's last step gives the first token of an answer, so it has no draft.
        """
        if self._head is None:
            return None
        own = scores.likeliest[1:]
        if not len(own):
            return Drafts(0, 0)
        drafting = self._head(states.embedded, states.final, states.position_ids)[0, first : first + len(own)]
        drafted = self._token_scores(drafting, own).likeliest
        return Drafts(len(own), int((drafted == own).sum()))

    def _watch(self, layer: int) -> Any:
        def keep(module: object, arguments: tuple[object, ...], output: tuple[Tensor, ...]) -> None:
            self._chosen[layer] = output[2]

        return keep

    def _picture_arguments(self, ids: Tensor, prompt: Prompt) -> dict[str, Any]:
        if prompt.pictures is None:
            return {}
        return {**prompt.pictures, "mm_token_type_ids": (ids == self._model.config.image_token_id).long()}


def _picture_reader(folder: Path) -> PictureReader | str:
    """A reader of pictures, or the reason why there is none."""
    try:
        return PictureReader(folder)
    except SkippedError as error:
        return str(error)
