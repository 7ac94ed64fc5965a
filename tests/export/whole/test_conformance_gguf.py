"""Conformance 9: GGUF files of llama.cpp's conversion, exported and compared with transformers.

transformers computes on the checkpoint that was converted, or, for quantised files, on the decoded weights. That these
are the values of llama.cpp's own decoder is tested in tests/export/checkpoint/gguf/test_blocks.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.checkpoint.text_files import load_tokenizer
from qwonnx.export.evaluation.reference_model import load_reference_model
from qwonnx.export.evaluation.verify import artifact_logits
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.checkpoints import write_tiny
from tests.checkpoints.config_json import HEADS_OF_64
from tests.checkpoints.gguf_files import TYPES, write_gguf

pytestmark = pytest.mark.usefixtures("traced_once")

PROMPT = np.random.default_rng(11).integers(0, 256, 40)
TEXT = "Grüße, 世界! don't <|im_start|>user\n  café <think>\n\n</think> 12345"
# Rows of 256 values, for the types of large blocks, and three value heads for each key head.
WIDE: dict[str, Any] = HEADS_OF_64 | {
    "num_hidden_layers": 2,
    "layer_types": ["full_attention", "linear_attention"],
    "hidden_size": 256,
    "linear_num_value_heads": 6,
    "linear_value_head_dim": 128,
    "linear_key_head_dim": 128,
}
MODELS: dict[str, dict[str, Any]] = {
    "experts": {
        "architecture": "Qwen3_5MoeForConditionalGeneration",
        "text_overrides": WIDE
        | {"num_experts": 5, "num_experts_per_tok": 3}
        | {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 256},
    },
    "dense, tied": {
        "architecture": "Qwen3_5ForCausalLM",
        "tie_word_embeddings": True,
        "text_overrides": WIDE | {"intermediate_size": 512},
    },
}
FLOATS = ("F32", "F16", "BF16")
QUICK = {("experts", "BF16"), ("experts", "Q4_K")}
CASES = [
    pytest.param(name, type_name, marks=() if (name, type_name) in QUICK else pytest.mark.soak)
    for name in MODELS
    for type_name in TYPES
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    return {name: write_tiny(folder / name, vision=False, **options) for name, options in MODELS.items()}


def _reference_logits(path: Path) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = load_reference_model(path)(torch.tensor(PROMPT)[None]).logits[0].numpy()
    return logits


@pytest.mark.parametrize(("name", "type_name"), CASES)
def test_9_a_gguf_file_equals_transformers(models: dict[str, Path], tmp_path: Path, name: str, type_name: str) -> None:
    source = models[name]
    path = write_gguf(source, tmp_path / "m.gguf", type_name)
    export_checkpoint(path, tmp_path / "artifact", ExportOptions(weights="fp32"))
    artifact = open_artifact(tmp_path / "artifact", verify=True)
    assert artifact.manifest.source.checkpoint == "m.gguf"
    found = artifact_logits(artifact, PROMPT)
    np.testing.assert_allclose(found, _reference_logits(path), atol=2e-4, rtol=0)
    if type_name in FLOATS:
        np.testing.assert_allclose(found, _reference_logits(source), atol=2e-4, rtol=0)
    exported = Tokenizer((artifact.folder / "tokenizer.json").read_bytes())
    assert exported.encode(TEXT) == load_tokenizer(source).encode(TEXT)
