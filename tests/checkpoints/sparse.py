"""Checkpoints of the published sizes that take no space: true names, shapes, dtypes and shards, and holes for values.

All values read as zeros, at the speed of memory. They test everything that depends on shapes: opening, checking,
tracing, the weight stage's memory. Two things differ from real values: the disk is idle, and a block of zeros quantises
to the scale 0, by the same operations as any other block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.checkpoints.config_json import generation_config
from tests.checkpoints.published import PUBLISHED, TOKEN_IDS, PublishedModel
from tests.checkpoints.safetensors_files import StoredTensor, split_evenly, write_shards, write_sparse_file
from tests.checkpoints.tensors import TensorPlan, expert_tensors, lm_head, mtp_tensors, text_tensors, vision_tensors
from tests.checkpoints.tiny import chat_template, write_json
from tests.checkpoints.tokenizer import build_tokenizer, tokenizer_config


def write_sparse(folder: Path, model: str = "397B-A17B", layer_types: Sequence[str] | None = None) -> Path:
    """Write a checkpoint of one of PUBLISHED into `folder`, which is made if it is missing, and return it.

    With layer_types it has only these layers, in one file. Its tokenizer is the tiny checkpoint's, because the real
    one's files are not ours.
    """
    published = PUBLISHED[model]
    if layer_types is not None:
        cut = {"num_hidden_layers": len(layer_types), "layer_types": list(layer_types)}
        published = dataclasses.replace(published, text={**published.text, **cut}, num_shards=1)
    folder.mkdir(parents=True, exist_ok=True)
    stored = [_stored(plan) for plan in sparse_tensors(published)]
    write_shards(folder, split_evenly(stored, published.num_shards), write_sparse_file)
    write_json(folder / "config.json", published.config())
    write_json(folder / "generation_config.json", generation_config(TOKEN_IDS))
    write_json(folder / "tokenizer_config.json", tokenizer_config())
    (folder / "tokenizer.json").write_text(build_tokenizer(), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(chat_template(), encoding="utf-8")
    return folder


def sparse_tensors(model: PublishedModel) -> Iterator[TensorPlan]:
    """All tensors of a published checkpoint: experts are fused, except in the multi-token-prediction head."""
    config = model.config()
    text = config["text_config"]
    yield from text_tensors(text, prefix="model.language_model.")
    if not model.is_tied:
        yield lm_head(text)
    yield from vision_tensors(config["vision_config"])
    for plan in mtp_tensors(text):
        yield from expert_tensors(plan) if ".experts." in plan.name else (plan,)


def _stored(plan: TensorPlan) -> StoredTensor:
    return StoredTensor(plan.name, "F32" if plan.keep_float32 else "BF16", plan.shape, tuple)
