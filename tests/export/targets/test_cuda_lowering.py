"""The CUDA target without a GPU: kernels for every node, refusals, and answers by the twin on the CPU."""

from __future__ import annotations

import shutil
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
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from tests.checkpoints import write_tiny
from tests.checkpoints.config_json import HEADS_OF_64
from tests.checkpoints.quantized_formats import write_gptq
from tests.export.decoder import Decoder

TEXT = {**HEADS_OF_64, "max_position_embeddings": 512}
BLOCKS_OF_32 = Recipe.preset("int4", 32)

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("cuda") / "checkpoint", text_overrides=TEXT)


@pytest.fixture(scope="module")
def export(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    made: dict[str, Artifact] = {}

    def find(target: str = "cuda", **options: Any) -> Artifact:
        key = repr((target, options))
        if key not in made:
            out = tmp_path_factory.mktemp("cuda") / "artifact"
            export_checkpoint(checkpoint, out, ExportOptions(target=target, **options))
            made[key] = open_artifact(out)
        return made[key]

    return find


@pytest.mark.parametrize(("weights", "kv"), [("int4", None), ("int8", "int8"), ("fp32", "int4"), ("int4", "fp8")])
def test_every_node_has_a_kernel(export: Callable[..., Artifact], weights: str, kv: str | None) -> None:
    """An export that ends has passed the table of kernels. Weights and states have the types of the target."""
    artifact = export(recipe=Recipe.preset(weights, 32), kv=kv)
    assert artifact.manifest.target == "cuda"
    assert artifact.manifest.minimum_onnxruntime == "1.31.1"
    dtypes = {state.kind: state.dtype for state in artifact.decoder.states}
    cached = {None: "float16", "int8": "int8", "int4": "uint8", "fp8": "float8e4m3fn"}[kv]
    assert dtypes == {"conv_state": "float16", "recurrent_state": "float32", "key": cached, "value": cached}
    graph = onnx.load(artifact.file("decoder.onnx"), load_external_data=False).graph
    floats = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    exact = {name for name in floats if not name.endswith((".logarithm.weight", ".dt_bias", "_scale"))}
    assert not exact, "only decays, and scales of the cache, are float32"
    assert {node.domain for node in graph.node} == {"", "com.microsoft"}


def test_activations_may_be_bfloat16(export: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = export(recipe=BLOCKS_OF_32, activations="bfloat16")
    assert (artifact.manifest.quantization.activations, artifact.manifest.quantization.kv) == ("bfloat16", "bfloat16")
    assert {state.dtype for state in artifact.decoder.states} == {"bfloat16", "float32"}
    emulate(export(recipe=BLOCKS_OF_32).folder, tmp_path / "exact", rounds=False)
    emulate(artifact.folder, tmp_path / "rounded")
    tokens = np.arange(30)
    decoders = (Decoder(open_artifact(tmp_path / name)) for name in ("exact", "rounded"))
    exact, rounded = (decoder.prefill(tokens, [len(tokens)]) for decoder in decoders)
    assert 0 < np.abs(rounded - exact).mean() < 0.1 * np.abs(exact).mean()  # eight bits; a router may choose otherwise


def test_a_step_has_few_nodes(export: Callable[..., Artifact]) -> None:
    graph = onnx.load(export(recipe=BLOCKS_OF_32).file("decoder.onnx"), load_external_data=False).graph
    views = ("Reshape", "Constant")  # that launch nothing
    assert sum(node.op_type not in views for node in graph.node) == 3 * 22 + 18 + 8  # linear, full, and around them


def test_a_dense_model_has_kernels_too(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "dense", architecture="Qwen3_5ForCausalLM", text_overrides=TEXT)
    export_checkpoint(folder, tmp_path / "out", ExportOptions(target="cuda", recipe=BLOCKS_OF_32))


def test_codes_of_a_checkpoint_are_kept_with_their_zero_points(tmp_path: Path) -> None:
    plain = write_tiny(tmp_path / "plain", fused_experts=False, text_overrides=TEXT)
    folder = write_gptq(plain, tmp_path / "gptq", tmp_path / "exact", group_size=32, symmetric=False)
    export_checkpoint(folder, tmp_path / "out", ExportOptions(target="cuda", recipe=BLOCKS_OF_32))
    graph = onnx.load(tmp_path / "out" / "decoder.onnx", load_external_data=False).graph
    assert any(name.endswith(".zero_points") for node in graph.node for name in node.input)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kv": "float32"}, ExportError, r"target cuda has no kv float32: use one of float16, int8, fp8, int4"),
        (
            {"kv": "float16", "activations": "bfloat16"},
            ExportError,
            r"target cuda has no kv float16 beside activations bfloat16: use one of bfloat16, int8, fp8, int4",
        ),
        (
            {"activations": "float32"},
            ExportError,
            r"target cuda has no activations float32: use float16 or bfloat16",
        ),
        (
            {"activations": "int8"},
            ExportError,
            r"target cuda has no activations int8: use float16 or bfloat16",
        ),
        (
            {"recipe": Recipe("int4", 32, (Rule("*.experts.down_proj", 8),))},
            RecipeError,
            r"layers\.0\.mlp\.experts has matrices of 4 and 8 bits: CUDA wants one for both",
        ),
        (
            {"recipe": Recipe.preset("int4", 16)},
            RecipeError,
            r"experts has blocks of 16: CUDA wants one size of 32, 64",
        ),
    ],
    ids=["kv", "kv of other activations", "activations", "int8 activations", "bits", "blocks"],
)
def test_what_no_kernel_takes_is_refused_in_a_line(
    checkpoint: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(target="cuda", **options))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"head_dim": 32}, r"8 values of a head are rotated and CUDA's attention wants a multiple of 16"),
        ({**TEXT, "hidden_size": 96}, r"hidden_size is 96 and CUDA's experts want a multiple of 64"),
    ],
)
def test_a_model_that_no_kernel_takes_is_refused_in_a_line(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    folder = write_tiny(tmp_path / "checkpoint", text_overrides=overrides)
    with pytest.raises(RecipeError, match=message):
        export_checkpoint(folder, tmp_path / "out", ExportOptions(target="cuda", recipe=BLOCKS_OF_32))


@pytest.mark.parametrize("kv", [None, "int8"])
@pytest.mark.parametrize("chunks", [(40,), (17, 1, 5)])
def test_the_twin_in_float32_gives_the_cpu_targets_logits(
    export: Callable[..., Artifact], tmp_path: Path, kv: str | None, chunks: tuple[int, ...]
) -> None:
    """The same weights through other operators, layouts and orders; only rotary angles are rounded to float16."""
    emulate(export(recipe=BLOCKS_OF_32, kv=kv).folder, tmp_path / "twin", rounds=False)
    rounded = shutil.copytree(
        export("cpu", recipe=BLOCKS_OF_32, kv=kv, activations="float32").folder, tmp_path / "rounded"
    )
    _round_weights(rounded)
    prompt = np.random.default_rng(3).integers(0, 256, 40)
    ours, theirs = (
        Decoder(open_artifact(folder), max_model_len=64).prefill(prompt, chunks)
        for folder in (tmp_path / "twin", rounded)
    )
    # Rounded angles move a few keys to the next code of an int8 cache.
    np.testing.assert_allclose(ours, theirs, atol=1e-3 if kv is None else 2e-2)


def _round_weights(artifact: Path) -> None:
    """Round all floats in the weight files to float16, but those of decays."""
    for tensor in onnx.load(artifact / "decoder.onnx", load_external_data=False).graph.initializer:
        kept = tensor.name.endswith((".decay_scale", ".dt_bias"))
        if tensor.data_type != onnx.TensorProto.FLOAT or not tensor.external_data or kept:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        shape, offset = (int(place["length"]) // 4,), int(place["offset"])
        values = np.memmap(artifact / place["location"], np.float32, "r+", offset, shape)
        values[:] = values.astype(np.float16)
        values.flush()


def test_float16_costs_little(export: Callable[..., Artifact], tmp_path: Path) -> None:
    """Two rows, and steps of one token after a prompt."""
    artifact = export(recipe=BLOCKS_OF_32)
    logits = []
    for rounds in (True, False):
        emulate(artifact.folder, tmp_path / str(rounds), rounds=rounds)
        decoder = Decoder(open_artifact(tmp_path / str(rounds)), batch=2, max_model_len=64)
        tokens = np.random.default_rng(4).integers(0, 256, (2, 24))
        steps = [decoder.step(tokens[:, :20]), *(decoder.step(tokens[:, at : at + 1]) for at in range(20, 24))]
        logits.append(np.concatenate(steps, axis=1))
    half, full = (each - np.log(np.exp(each).sum(axis=-1, keepdims=True)) for each in logits)
    divergence = (np.exp(full) * (full - half)).sum(axis=-1)
    assert divergence.mean() < 1e-4
    assert (half.argmax(-1) == full.argmax(-1)).mean() > 0.95
