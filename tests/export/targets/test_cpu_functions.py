"""One graph for both kernels: without the native library it is ONNX Runtime's own, and with it native kernels run.

ONNX's inliner makes the graph of ONNX Runtime's kernels that the functions stand for.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.evaluation.verify import artifact_logits
from qwonnx.export.quantization.recipe import Recipe, Rule
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.native.library import DOMAIN, NativeLibrary
from tests.checkpoints import write_tiny
from tests.checkpoints.quantized_formats import write_gptq

pytestmark = pytest.mark.usefixtures("traced_once")

Export = Callable[[ExportOptions], Artifact]

MIXED = Recipe("int4", 64, (Rule("layers.3.self_attn.*", 32), Rule("*.out_proj.weight", 8)))
RECIPES = {
    "int4": ExportOptions(weights="int4"),
    "int4, float activations": ExportOptions(weights="int4", activations="float32"),
    "int8": ExportOptions(weights="int8"),
    "int8, float activations": ExportOptions(weights="int8", activations="float32"),
    "mixed": ExportOptions(recipe=MIXED),
    "int8 cache, values of 8 bits": ExportOptions(recipe=Recipe("int4", 64, (Rule("*.v_proj.weight", 8),)), kv="int8"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_without_the_library_the_session_is_that_of_onnx_runtimes_kernels(
    export_tiny: Export, tmp_path: Path, name: str
) -> None:
    _check_fallback(export_tiny(RECIPES[name]), tmp_path)


def _check_fallback(artifact: Artifact, tmp_path: Path) -> None:
    graph = artifact.file(artifact.decoder.file)
    inlined = tmp_path / "inlined.onnx"
    model = onnx.load(graph, load_external_data=False)
    names = [(DOMAIN, name) for name in artifact.decoder.native_operators]
    assert names
    inlined.write_bytes(onnx.inliner.inline_selected_functions(model, names).SerializeToString())
    assert _optimised(graph, artifact.folder, tmp_path) == _optimised(inlined, artifact.folder, tmp_path)
    prompt = np.random.default_rng(1).integers(0, 200, 20)
    logits = artifact_logits(artifact, prompt, 16, Kernels.ONNXRUNTIME)
    expected = artifact_logits(_with_graph(artifact, inlined, tmp_path), prompt, 16, Kernels.ONNXRUNTIME)
    np.testing.assert_array_equal(logits, expected)


def _optimised(graph: Path, folder: Path, tmp_path: Path, library: NativeLibrary | None = None) -> Counter[str]:
    """The kinds of nodes that a session runs."""
    written = tmp_path / "optimised.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(written)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimised.bin")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if library:
        library.register(options)
    onnxruntime.InferenceSession(graph.read_bytes(), options, providers=["CPUExecutionProvider"])
    model = onnx.load(written, load_external_data=False)
    return Counter(f"{node.domain}.{node.op_type}" for node in _all_nodes(model.graph))


def _all_nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _all_nodes(attribute.g)


def _with_graph(artifact: Artifact, graph: Path, tmp_path: Path) -> Artifact:
    """A copy of the artifact with another graph."""
    folder = tmp_path / "with_graph"
    folder.mkdir()
    for path in artifact.folder.iterdir():
        if path.name != artifact.decoder.file:
            shutil.copyfile(path, folder / path.name)  # onnx.checker refuses a file with several links
    (folder / artifact.decoder.file).write_bytes(graph.read_bytes())
    return Artifact(folder, artifact.manifest)


@pytest.mark.parametrize("name", ["int4", "int8", "mixed", "int8 cache, values of 8 bits"])
def test_with_the_library_native_kernels_run(
    export_tiny: Export, library: NativeLibrary, tmp_path: Path, name: str
) -> None:
    artifact = export_tiny(RECIPES[name])
    nodes = _optimised(artifact.file(artifact.decoder.file), artifact.folder, tmp_path, library)
    assert {kind.rpartition(".")[2] for kind in nodes if kind.startswith(DOMAIN)} == {
        *artifact.decoder.native_operators
    }
    assert not nodes.keys() & {"com.microsoft.MatMulNBits", "com.microsoft.QMoE"}
    assert (f"{DOMAIN}.QuantizedAttentionInputs" in nodes) == (name != "mixed")  # whose projections are floats
    assert _types_of_gates(artifact) == {onnx.TensorProto.BFLOAT16}  # as the checkpoint has them


def _types_of_gates(artifact: Artifact) -> set[int]:
    graph = onnx.load(artifact.file(artifact.decoder.file), load_external_data=False).graph
    places = {"QuantizedMixture": 3, "QuantizedDeltaNet": 2}
    gates = {node.input[places[node.op_type]] for node in graph.node if node.op_type in places}
    assert len(gates) == 7  # of four layers, of which three have linear attention
    return {tensor.data_type for tensor in graph.initializer if tensor.name in gates}


def test_float_activations_give_the_same_logits_on_both(export_tiny: Export, library: NativeLibrary) -> None:
    artifact = export_tiny(RECIPES["int4, float activations"])
    prompt = np.random.default_rng(2).integers(0, 200, 40)
    ours, theirs = (artifact_logits(artifact, prompt, 24, kernels) for kernels in (Kernels.NATIVE, Kernels.ONNXRUNTIME))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)


def test_weights_with_zero_points_run_on_both(library: NativeLibrary, tmp_path: Path) -> None:
    floats = write_tiny(tmp_path / "floats", fused_experts=False)
    checkpoint = write_gptq(
        floats, tmp_path / "gptq", tmp_path / "exact", group_size=32, symmetric=False, pattern=r"_proj\.weight$"
    )
    recipe = Recipe("fp32", 0, (Rule("layers.*_proj*", 4),))
    export_checkpoint(checkpoint, tmp_path / "artifact", ExportOptions(recipe=recipe))
    artifact = open_artifact(tmp_path / "artifact")
    assert {"AffineMixture", "AffineAttentionInputs", "AffineLinear"} <= set(artifact.decoder.native_operators)
    _check_fallback(artifact, tmp_path)
    nodes = _optimised(artifact.file(artifact.decoder.file), artifact.folder, tmp_path, library)
    assert {f"{DOMAIN}.{name}" for name in ("AffineMixture", "AffineAttentionInputs", "AffineLinear")} <= nodes.keys()
