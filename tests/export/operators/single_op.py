"""Run one `ai.qwonnx` operator by its function body, in onnx.reference or in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from qwonnx.export.lowering.functions import add_function_bodies
from qwonnx.export.operators.op_bodies import OPSET
from qwonnx.export.operators.ops import DOMAIN, VERSION

ENGINES = ("reference", "onnxruntime")


def model_of(
    op_type: str,
    inputs: dict[str, np.ndarray],
    num_outputs: int,
    attributes: dict[str, Any],
    output_types: Sequence[ir.DataType] = (),
) -> onnx.ModelProto:
    """A model of one node with its function bodies, checked as strictly as onnx can. Outputs are FLOAT by default."""
    values = [
        ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
        for name, array in inputs.items()
    ]
    node = ir.node(op_type, values, attributes, domain=DOMAIN, num_outputs=num_outputs)
    for index, output in enumerate(node.outputs):
        output.name = f"out_{index}"
        output.type = ir.TensorType(output_types[index] if output_types else ir.DataType.FLOAT)
    graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": OPSET, DOMAIN: VERSION}, name="single_op")
    model = ir.Model(graph, ir_version=10)
    add_function_bodies(model)
    # Outputs must state a shape; onnx finds it through the function bodies.
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run(
    engine: str,
    op_type: str,
    inputs: dict[str, np.ndarray],
    num_outputs: int = 1,
    output_types: Sequence[ir.DataType] = (),
    **attributes: Any,
) -> list[np.ndarray]:
    """The operator's outputs, computed from its function body by one of ENGINES."""
    proto = model_of(op_type, inputs, num_outputs, attributes, output_types)
    if engine == "reference":
        return [np.asarray(output) for output in ReferenceEvaluator(proto).run(None, inputs)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, inputs)]
