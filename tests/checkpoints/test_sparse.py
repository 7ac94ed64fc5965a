"""The published sizes have the published numbers of parameters; sparse files have them and take no space."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.config import load_config
from tests.checkpoints import write_sparse
from tests.checkpoints.published import PUBLISHED, PublishedModel
from tests.checkpoints.sparse import sparse_tensors

pytestmark = pytest.mark.fast

MODELS = pytest.mark.parametrize("model", PUBLISHED.values(), ids=PUBLISHED.keys())


@MODELS
def test_shapes_add_up_to_the_published_numbers_of_parameters(model: PublishedModel) -> None:
    counted: Counter[str] = Counter()
    for plan in sparse_tensors(model):
        part = next((part for part in ("mtp", "visual") if part in plan.name.split(".")), "text")
        counted[part] += math.prod(plan.shape)
    assert counted == {
        "text": model.text_parameters,
        "visual": model.vision_parameters,
        "mtp": model.mtp_parameters,
    }


@MODELS
def test_the_exporter_reads_the_config_of_every_size(model: PublishedModel, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model.config()))
    config = load_config(tmp_path)
    assert config.num_hidden_layers == model.text["num_hidden_layers"]
    assert config.layer_types.count("full_attention") == config.num_hidden_layers // 4
    assert (config.vocab_size, config.head_dim, config.rotary_dim) == (248320, 256, 64)
    assert config.tie_word_embeddings == model.is_tied


def test_a_sparse_checkpoint_opens_like_the_real_one_and_reads_as_zeros(tmp_path: Path) -> None:
    folder = write_sparse(tmp_path / "sparse")
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert (len(shards), shards[-1]) == (94, "model.safetensors-00094-of-00094.safetensors")
    checkpoint = Checkpoint.open(folder)
    assert 806.7e9 < checkpoint.total_bytes < 806.9e9
    assert sum(path.stat().st_blocks * 512 for path in folder.iterdir()) < 4e6
    experts = checkpoint.info("model.language_model.layers.59.mlp.experts.gate_up_proj")
    assert experts.shape == (512, 2048, 4096)
    assert checkpoint.info("mtp.layers.0.mlp.experts.511.down_proj.weight").shape == (4096, 1024)
    assert checkpoint.info("model.language_model.layers.0.linear_attn.A_log").dtype == "F32"
    assert torch.equal(checkpoint.read(experts.name, 511, 1), torch.zeros(1, 2048, 4096, dtype=torch.bfloat16))
