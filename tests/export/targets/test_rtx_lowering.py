"""The target rtx without a GPU: importers for every node, refusals, and answers by the twin on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from infra.gpu.emulation import emulate
from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.errors import ExportError, RecipeError
from qwonnx.export.quantization.recipe import Recipe, Rule
from qwonnx.export.targets.rtx_importers import rtx_importers
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from tests.checkpoints import write_tiny
from tests.checkpoints.config_json import HEADS_OF_64
from tests.export.decoder import Decoder

# Experts have blocks of 128, and so at least as many features.
TEXT = {
    **HEADS_OF_64,
    "max_position_embeddings": 512,
    "hidden_size": 128,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
INT4 = Recipe.preset("int4", 128)

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("rtx") / "checkpoint", text_overrides=TEXT)


@pytest.fixture(scope="module")
def export(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    def make(target: str = "rtx", **options: Any) -> Artifact:
        out = tmp_path_factory.mktemp("rtx") / "artifact"
        export_checkpoint(checkpoint, out, ExportOptions(target=target, **options))
        return open_artifact(out)

    return make


def test_the_twin_answers_as_the_cpu_target(export: Callable[..., Artifact], tmp_path: Path) -> None:
    """The same codes; scales of float16. Every node has an importer, and floats and states are half.

    The default is plain int4.
    """
    artifact = export()
    graph = onnx.load(artifact.file("decoder.onnx"), load_external_data=False).graph
    assert {node.op_type for node in graph.node} <= rtx_importers()
    operators = {node.op_type for node in graph.node if node.domain}
    assert operators == {"MatMulNBits", "QMoE", "GroupQueryAttention", "LinearAttention", "CausalConvWithState"}
    assert {state.dtype for state in artifact.decoder.states} == {"float16"}
    floats = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    assert all(name.endswith((".decay_scale", ".dt_bias")) for name in floats)
    emulate(artifact.folder, tmp_path / "twin", rounds=False)
    other = export("cpu", recipe=Recipe("int4", 128, (Rule("embed_tokens.weight", 32),)), activations="float32")
    tokens = np.random.default_rng(3).integers(0, 256, (1, 20))
    logits = []
    for each in (open_artifact(tmp_path / "twin"), other):
        decoder = Decoder(each, batch=1, max_model_len=32)
        steps = [decoder.step(tokens[:, :16]), *(decoder.step(tokens[:, at : at + 1]) for at in range(16, 20))]
        logits.append(np.concatenate(steps, axis=1))
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-2)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe.preset("int8", 128), r"experts has 8 bits in blocks of 128 .* wants 4 bits in blocks of 128 without"),
        (Recipe.preset("int4", 64), r"experts has 4 bits in blocks of 64 and .*: the plugin for RTX wants"),
        (Recipe.preset("fp32", 0), r"experts.*has floats: the plugin for RTX wants"),
        (
            Recipe("int4", 128, (Rule("lm_head.weight", 8),)),
            r"lm_head.* has 8 bits: the plugin for RTX multiplies by 4",
        ),
        (Recipe("int4", 128, (Rule("lm_head.weight", 4, 16),)), r"lm_head.* has blocks of 16: .* wants 32, 64 or 128"),
    ],
)
def test_weights_that_the_plugin_does_not_take_are_refused(
    export: Callable[..., Artifact], recipe: Recipe, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as raised:
        export(recipe=recipe)
    assert "\n" not in str(raised.value)


def test_a_cache_of_codes_is_refused(export: Callable[..., Artifact]) -> None:
    with pytest.raises(ExportError, match="the target rtx has no kv int8: use one of float16"):
        export(recipe=INT4, kv="int8")
