"""Make the twin of a CUDA artifact that a CPU runs: the same graph in float32, rounded to 16 bits after every node.

    python -m infra.gpu.emulation ARTIFACT OUT [--exact]

The twin's nodes are those of the CUDA graph, with their attributes, layouts and weights, on ONNX Runtime's CPU kernels
of the same operators. So it shows what a wrong attribute, layout or order of inputs would do to answers, and what 16
bits cost: each kernel rounds its output to them and computes inside in float32, as CUDA's do. It is an artifact
like any other: `qwonnx generate`, `eval` and `verify` take it. --exact leaves the rounding out. Only the norms of
queries and keys are apart, because the CPU's attention does not have them.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qwonnx.export.targets.cuda_kernels import types_of
from qwonnx.runtime.artifact.file_names import DECODER
from qwonnx.runtime.artifact.folder import file_sha256
from qwonnx.runtime.artifact.manifest import FileEntry, read_manifest, write_manifest

_FULL = ir.DataType.FLOAT
_HALVES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
_MICROSOFT = "com.microsoft"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--exact", action="store_true", help="float32 throughout")
    options = parser.parse_args(arguments)
    if options.out.exists():
        print(f"{options.out} exists: choose another folder", file=sys.stderr)
        return 2
    emulate(options.artifact, options.out, rounds=not options.exact)
    return 0


def emulate(artifact: Path, out: Path, *, rounds: bool = True) -> None:
    """Write the twin of a CUDA artifact into a new folder; of one for rtx too, without rounding."""
    manifest = read_manifest(artifact)
    assert manifest.target in ("cuda", "rtx")[: 1 if rounds else 2], f"{artifact} is not for CUDA"
    out.mkdir(parents=True)
    for entry in manifest.files:
        shutil.copyfile(artifact / entry.path, out / entry.path)
    spec = manifest.graphs[DECODER]
    model = ir.load(artifact / spec.file)
    _make_portable(model, _HALVES[manifest.quantization.activations], rounds=rounds)
    (out / spec.file).unlink()
    ir.save(model, out / spec.file)
    states = tuple(
        dataclasses.replace(state, dtype="float32") if state.dtype in _HALVES else state for state in spec.states
    )
    files = tuple(
        FileEntry(entry.path, (out / entry.path).stat().st_size, file_sha256(out / entry.path))
        for entry in manifest.files
    )
    graphs = {DECODER: dataclasses.replace(spec, states=states)}
    write_manifest(out, dataclasses.replace(manifest, target="portable", graphs=graphs, files=files))


def _make_portable(model: ir.Model, half: ir.DataType, *, rounds: bool) -> None:
    """Turn the floats of 16 bits into float32, in place."""
    graph = model.graph
    types = types_of(model) if rounds else {}
    _take_norms_apart(graph)
    for name, value in tuple(graph.initializers.items()):
        if value.dtype == half:
            assert value.const_value is not None
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=name)
            value.type = ir.TensorType(_FULL)
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype == half:
            value.type = ir.TensorType(_FULL)
    for node in tuple(graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() == half.value:
            node.attributes["to"] = ir.AttrInt64("to", _FULL.value)
        for output in node.outputs:
            if types.get(str(output.name)) == half.name.lower():
                _round(graph, node, output, half)


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value, dtype: ir.DataType) -> None:
    """Round an output before anything reads it."""
    half = ir.node("Cast", [output], {"to": dtype.value})
    full = ir.node("Cast", [half.outputs[0]], {"to": _FULL.value})
    rounded = full.outputs[0]
    rounded.type, rounded.shape = output.type, output.shape
    ir.convenience.replace_all_uses_with(output, rounded, replace_graph_outputs=True)
    half.replace_input_with(0, output)
    rounded.name, output.name = output.name, f"{output.name}.exact"
    graph.insert_after(node, [half, full])


def _take_norms_apart(graph: ir.Graph) -> None:
    """Norms of queries and keys before GroupQueryAttention, which has them only on a GPU."""
    for node in tuple(graph):
        if node.op_type != "GroupQueryAttention" or len(node.inputs) <= _Q_NORM:
            continue
        packed, past_key, q_norm, k_norm = (node.inputs[index] for index in (0, 3, _Q_NORM, _Q_NORM + 1))
        assert packed is not None
        assert past_key is not None
        assert past_key.shape is not None
        heads, kv_heads = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
        width = int(str(past_key.shape[3]))
        widths = ir.Value(name=f"{node.name}.widths", shape=ir.Shape([3]), type=ir.TensorType(ir.DataType.INT64))
        widths.const_value = ir.tensor(np.array([heads, kv_heads, kv_heads]) * width, name=widths.name)
        graph.register_initializer(widths)
        parts = ir.node("Split", [packed, widths], {"axis": -1}, num_outputs=3)
        epsilon = node.attributes["qk_norm_epsilon"].as_float()
        normed = [
            ir.node("BranchwiseRMSNorm", [part, norm], {"num_branches": count, "epsilon": epsilon}, domain=_MICROSOFT)
            for part, norm, count in zip(parts.outputs, (q_norm, k_norm), (heads, kv_heads), strict=False)
        ]
        inputs = [*(each.outputs[0] for each in normed), parts.outputs[2], *node.inputs[3:_Q_NORM]]
        kept = [value for name, value in node.attributes.items() if name != "qk_norm_epsilon"]
        outputs = [ir.Value(shape=output.shape, type=output.type) for output in node.outputs]
        attention = ir.Node(_MICROSOFT, node.op_type, inputs, kept, outputs=outputs)
        for before, after in zip(node.outputs, outputs, strict=True):
            name = before.name
            ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
            before.name, after.name = f"{name}.before", name
        graph.insert_before(node, [parts, *normed, attention])
        graph.remove(node, safe=True)


_Q_NORM = 14  # the place of q_norm_weight among GroupQueryAttention's inputs


if __name__ == "__main__":
    sys.exit(main())
