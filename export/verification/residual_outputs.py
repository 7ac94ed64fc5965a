"""Adds to a decoder's graph the residual stream before each layer and after the last one as outputs.

Layer N starts with a norm whose weight is `layers.N.input_layernorm.weight`, alone or as an input of a fused operator.
The first input of that node is the residual stream. The same is true of `norm.weight` and the stream after all layers.
The file is not changed, and its weights are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnx import TensorProto, helper

from qwonnx.export.evaluation.decoder_graph import read_decoder_graph


@dataclass(frozen=True, slots=True)
class WatchedGraph:
    """The model, serialised, and the new outputs: float32 [1, T, hidden_size], one more than there are layers.

    The last one has only the positions whose logits are wanted.
    """

    graph: bytes
    outputs: tuple[str, ...]


def with_residual_outputs(path: Path, num_layers: int) -> WatchedGraph | None:
    """Read a decoder and add the outputs; None if the stream is not found, as in graphs of other targets.

    Raises:
        VerificationError: it is not an ONNX file.
    """
    model = read_decoder_graph(path)
    norms = [f"layers.{layer}.input_layernorm.weight" for layer in range(num_layers)] + ["norm.weight"]
    streams: dict[str, str] = {}
    for node in model.graph.node:
        for name in set(node.input) & set(norms):
            streams.setdefault(name, node.input[0])
    if set(streams) != set(norms):
        return None
    outputs = tuple(streams[name] for name in norms)
    if len(set(outputs)) != len(outputs):
        return None
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    return WatchedGraph(model.SerializeToString(), outputs)
