"""One node of a fused operator, run by its native kernel or by its function on ONNX Runtime's kernels."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qwonnx.export.lowering.functions import add_function_bodies
from qwonnx.export.targets.cpu_functions import add_kernel_functions
from qwonnx.runtime.native.library import DOMAIN, NativeLibrary
from tests.runtime.native.reference import Weight, open_session

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class FusedNode:
    """A node; what it reads besides `inputs` is constant."""

    op_type: str
    inputs: Arrays  # in the order of the operator's inputs, of which constants are among them
    constants: Arrays
    order: Sequence[str]  # names of all inputs
    attributes: Mapping[str, Any]
    num_outputs: int = 1

    def session(self, library: NativeLibrary | None) -> Any:
        """With the native kernel, or without a library, which inlines the function."""
        outputs = [f"y{i}" for i in range(self.num_outputs)]
        node = helper.make_node(self.op_type, list(self.order), outputs, domain=DOMAIN, **self.attributes)
        graph = helper.make_graph(
            [node],
            "graph",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim)
                for name, x in self.inputs.items()
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid(DOMAIN, 1)]
        model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
        add_kernel_functions(model)
        add_function_bodies(model)
        return open_session(ir.to_proto(model).SerializeToString(), library)

    def with_gates(self, dtype: Any) -> FusedNode:
        """The same node, whose gates are of another type."""
        return replace(self, constants={**self.constants, "gates": self.constants["gates"].astype(dtype)})

    def run(self, library: NativeLibrary | None) -> list[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = self.session(library).run(None, dict(self.inputs))
        return outputs


def in_blocks(weight: Weight) -> Weight:
    """Codes as MatMulNBits takes them."""
    return replace(weight, codes=weight.codes.reshape(*weight.scales.shape, -1))


def assert_bfloat16_is_float32(made: FusedNode, library: NativeLibrary) -> None:
    """Gates in bfloat16 give the bits of their values in float32, with the native kernel and without."""
    narrow = made.with_gates(ml_dtypes.bfloat16)
    wide = narrow.with_gates(np.float32)
    for kernels in (library, None):
        for ours, theirs in zip(narrow.run(kernels), wide.run(kernels), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def tolerance_of_codes(relative: float) -> float:
    """Of outputs of quantised activations: ONNX Runtime quantises by block on x86-64, as we do, and by row on ARM."""
    return relative if platform.machine() in ("x86_64", "AMD64") else 2e-2


def assert_close(ours: NDArray[np.float32], theirs: NDArray[np.float32], relative: float) -> None:
    """No element is off by more than a part of the largest."""
    assert ours.shape == theirs.shape
    most = np.abs(theirs).max(initial=1e-30)
    assert np.abs(ours - theirs).max(initial=0) <= relative * most, np.abs(ours - theirs).max() / most
