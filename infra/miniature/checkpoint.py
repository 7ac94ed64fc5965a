"""Writes the model as a folder in Hugging Face layout, and reads it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from infra.miniature import vocabulary
from infra.miniature.configuration import preprocessor_config
from infra.miniature.model import Miniature, load_stored, stored_tensors
from tests.checkpoints import chat_template
from tests.checkpoints.config_json import generation_config
from tests.checkpoints.safetensors_files import StoredTensor, encode, write_file
from tests.checkpoints.tiny import write_json
from tests.checkpoints.tokenizer import tokenizer_config

WEIGHTS = "model.safetensors"
# The result of the training that the card describes.
TRAINED = Path(__file__).resolve().parents[2] / "tests" / "miniature" / "checkpoint"

# Tensors that the published checkpoints keep in float32.
_KEPT = ("linear_attn.A_log", "linear_attn.norm.weight")


def write_checkpoint(folder: Path, model: Miniature, config: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Write the weights (BF16), config, tokenizer, chat template, generation and preprocessor configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = []
    for name, tensor in stored_tensors(model):
        dtype = "F32" if name.endswith(_KEPT) else "BF16"
        content = encode(tensor.float().numpy(), dtype)
        tensors.append(StoredTensor(name, dtype, tuple(tensor.shape), lambda content=content: (content,)))  # type: ignore[misc]
    write_file(folder / WEIGHTS, tensors)
    ids = vocabulary.token_ids(tokenizer)
    write_json(folder / "config.json", dict(config))
    # Greedy: every question has one answer.
    greedy = {
        name: value for name, value in generation_config(ids).items() if name not in {"temperature", "top_k", "top_p"}
    }
    write_json(folder / "generation_config.json", {**greedy, "do_sample": False})
    write_json(folder / "tokenizer_config.json", tokenizer_config())
    write_json(folder / "preprocessor_config.json", preprocessor_config())
    vocabulary.save(tokenizer, folder)
    (folder / "chat_template.jinja").write_text(chat_template(), encoding="utf-8")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder by their stored names and in their stored types."""
    return load_file(folder / WEIGHTS)


def read_checkpoint(folder: Path) -> Miniature:
    """The model of a folder that write_checkpoint wrote, in float32 and in eval mode."""
    model = Miniature(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    load_stored(model, read_weights(folder))
    return model.eval()
