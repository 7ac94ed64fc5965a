"""`qwonnx eval` gives the same scores of the miniature as its training, with those of the draft head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from infra.miniature import (
    glossary,
    pictures,
    tool_calls,
    vocabulary,
)
from infra.miniature.checkpoint import write_checkpoint
from infra.miniature.mixture import Mixture
from infra.miniature.model import Miniature
from infra.miniature.suite import write_suite
from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.formats.stored_weights import StoredWeights
from qwonnx.export.errors import MissingTensorError, TensorFormatError, VerificationError
from qwonnx.export.evaluation.checkpoint_subject import CheckpointSubject
from qwonnx.export.evaluation.reference_model import load_reference_model, quiet_transformers
from qwonnx.export.evaluation.reference_mtp import load_mtp_head
from qwonnx.export.evaluation.run import evaluate
from qwonnx.export.evaluation.subject import Drafts
from qwonnx.export.evaluation.suite import read_suite
from tests.checkpoints.config_json import Json
from tests.infra.miniature.test_model import frames

FILE = "model.safetensors"


@pytest.fixture
def folder(rough_model: Miniature, probe_config: Json, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """The rough model's checkpoint, and the model with the checkpoint's rounded weights."""
    round_to_stored(rough_model)
    write_checkpoint(tmp_path / "checkpoint", rough_model, probe_config, tokenizer)
    return tmp_path / "checkpoint"


def round_to_stored(model: Miniature) -> None:
    """Round a model's parameters to the dtypes of a checkpoint."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(("linear_attn.A_log", "linear_attn.norm.weight")):
                parameter.copy_(parameter.bfloat16())


def stored(folder: Path) -> StoredWeights:
    return StoredWeights(Checkpoint.open(folder), None)


def load(folder: Path) -> Any:
    with quiet_transformers():
        return load_reference_model(folder, pictures=True)


def changed(folder: Path, **tensors: torch.Tensor | None) -> StoredWeights:
    """The checkpoint with some tensors added, or removed if they are None."""
    weights = load_file(folder / FILE)
    weights.update({name: tensor for name, tensor in tensors.items() if tensor is not None})
    save_file(
        {name: tensor for name, tensor in weights.items() if tensors.get(name, tensor) is not None}, folder / FILE
    )
    return stored(folder)


def test_its_logits_are_those_of_training_after_words_and_after_pictures(
    folder: Path, rough_model: Miniature, mixture: Mixture
) -> None:
    model = load(folder)
    text_model = model.model.language_model
    head = load_mtp_head(text_model, stored(folder))
    assert head is not None
    for example in (next(glossary.held_out(1, 0, thinking=True)), next(pictures.held_out(1, 0))):
        encoded = mixture.encoder.encode(example)
        ids = torch.from_numpy(encoded.ids).long()[None]
        length = ids.shape[1]  # the batch is filled up to whole chunks of the recurrence
        with torch.no_grad():
            batch = mixture.pack([[encoded]], 256)
            expected_own, expected = (logits[:, :length] for logits in rough_model.logits(batch))
            embedded = text_model.embed_tokens(ids)
            if encoded.pictures:
                grid = torch.tensor(
                    [[1, picture.shape[0] // 16, picture.shape[1] // 16] for picture in encoded.pictures]
                )
                pixels = torch.cat([torch.from_numpy(frames(picture)) for picture in encoded.pictures])
                rows = torch.cat(model.model.get_image_features(pixels, grid, return_dict=True).pooler_output)
                embedded = embedded.masked_scatter((ids == model.config.image_token_id).unsqueeze(-1), rows)
            positions = torch.from_numpy(batch.positions[..., :length])
            final = text_model(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state
            torch.testing.assert_close(model.lm_head(final), expected_own, rtol=0, atol=1e-4)
            drafted = model.lm_head(head(embedded, final, positions))
        assert drafted.std() > 0.1
        torch.testing.assert_close(drafted, expected[:, :-1], rtol=0, atol=1e-4)


def test_fused_experts_are_the_same_head(folder: Path) -> None:
    text_model = load(folder).model.language_model
    apart = load_mtp_head(text_model, stored(folder))
    assert apart is not None
    prefix = "mtp.layers.0.mlp.experts."
    fused = {
        f"{prefix}{kind}": parameter.bfloat16()
        for kind, parameter in apart.layers[0].mlp.experts.named_parameters()  # type: ignore[union-attr]
    }
    each = {name: None for name in load_file(folder / FILE) if name.startswith(prefix)}
    together = load_mtp_head(text_model, changed(folder, **each, **fused))
    assert together is not None
    for (name, one), (_, other) in zip(apart.named_parameters(), together.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_head_that_is_not_whole_or_not_known_is_refused(folder: Path) -> None:
    text_model = load(folder).model.language_model
    expert = "mtp.layers.0.mlp.experts.3.up_proj.weight"
    weight = load_file(folder / FILE)[expert]
    with pytest.raises(TensorFormatError, match=r"experts\.3\.up_proj"):
        load_mtp_head(text_model, changed(folder, **{expert: weight[:-1].contiguous()}))
    with pytest.raises(MissingTensorError, match=r"experts\.3\.up_proj"):
        load_mtp_head(text_model, changed(folder, **{expert: None}))
    with pytest.raises(VerificationError, match="several layers"):
        load_mtp_head(text_model, changed(folder, **{"mtp.layers.1.input_layernorm.weight": weight}))
    none = changed(folder, **{name: None for name in load_file(folder / FILE) if name.startswith("mtp.")})
    assert load_mtp_head(text_model, none) is None


def test_a_suite_is_scored_as_in_training(
    rough_model: Miniature, probe_config: Json, tokenizer: Tokenizer, mixture: Mixture, tmp_path: Path
) -> None:
    favourite = vocabulary.token_ids(tokenizer)["<|fim_pad|>"]
    with torch.no_grad():  # a token that both the model and the head often find the likeliest, and often not
        rough_model.model.language_model.embed_tokens.weight[favourite] *= 30
    round_to_stored(rough_model)
    folder, suite = tmp_path / "checkpoint", tmp_path / "suite.jsonl"
    write_checkpoint(folder, rough_model, probe_config, tokenizer)
    examples = [
        *glossary.held_out(4, 0),
        *glossary.held_out(3, 1, thinking=True),
        *tool_calls.held_out(2, 0),
        *tool_calls.held_out(2, 1, thinking=True),
        *pictures.held_out(3, 0),
        *pictures.held_out(2, 1, thinking=True),
    ]
    write_suite(suite, examples)
    read = read_suite(suite)
    subject = CheckpointSubject(str(folder), None, pictures=True)
    evaluation = evaluate(subject, read, read.questions, None, max_tokens=1)
    tasks = [one.task for one in evaluation.report.tasks]
    assert tasks == ["glossary", "glossary", "pictures", "pictures", "tools", "tools"]
    for example, outcome in zip(examples, evaluation.outcomes, strict=True):
        encoded = mixture.encoder.encode(example)
        learnt = np.flatnonzero(encoded.learnt)[-len(outcome.scored.surprise) :]  # type: ignore[union-attr]
        with torch.no_grad():
            own, head = (logits[0] for logits in rough_model.logits(mixture.pack([[encoded]], 1024)))
        expected = torch.nn.functional.cross_entropy(
            own[learnt - 1].double(), torch.from_numpy(encoded.ids[learnt]).long(), reduction="none"
        )
        assert outcome.scored is not None
        np.testing.assert_allclose(outcome.scored.surprise, expected, rtol=0, atol=2e-4)
        # The head at t and the model at t + 1 both predict token t + 2.
        agreed = head[learnt[1:] - 2].argmax(-1) == own[learnt[1:] - 1].argmax(-1)
        assert outcome.scored.drafts == Drafts(len(agreed), int(agreed.sum()))
    mtp = evaluation.report.mtp
    assert mtp is not None
    assert 0.1 < (mtp.acceptance or 0) < 0.9
