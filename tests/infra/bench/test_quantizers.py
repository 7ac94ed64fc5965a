"""The peers of the quantiser comparison give the results of ONNX Runtime's own tool and kernel."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    KQuantWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)

from infra.bench.judge import Verdict
from infra.bench.ort_quantizers import OrtQuantizer
from infra.bench.quantizers import Outcome, algorithms, compare
from qwonnx.export.quantization.importance import Importance

pytestmark = pytest.mark.fast

COLUMNS, ROWS = 256, 24


def _through_the_kernel(weight: torch.Tensor, algorithm: str, bits: int, block_size: int) -> tuple[np.ndarray, int]:
    """The weight as MatMulNBits multiplies with it, and the bytes that the quantised model stores for it."""
    tensor = onnx.numpy_helper.from_array(weight.numpy().T.copy(), "weight")
    node = onnx.helper.make_node("MatMul", ["x", "weight"], ["y"], name="product")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "graph",
        [value("x", onnx.TensorProto.FLOAT, [None, COLUMNS])],
        [value("y", onnx.TensorProto.FLOAT, [None, ROWS])],
        [tensor],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    config: Any
    if algorithm == "hqq":
        config = HQQWeightOnlyQuantConfig(block_size=block_size, bits=bits)
    elif algorithm == "k-quant":
        config = KQuantWeightOnlyQuantConfig(customized_weight_config={"product": {"bits": bits}})
    else:
        symmetric = algorithm == "rtn symmetric"
        config = DefaultWeightOnlyQuantConfig(block_size=block_size, is_symmetric=symmetric, bits=bits)
    quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=block_size, algo_config=config)
    quantizer.process()
    quantized = quantizer.model.model
    (kernel,) = quantized.graph.node
    assert kernel.op_type == "MatMulNBits"
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    num_bytes = sum(onnx.numpy_helper.to_array(stored[name]).nbytes for name in kernel.input if name in stored)
    session = onnxruntime.InferenceSession(quantized.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.eye(COLUMNS, dtype=np.float32)})[0].T, num_bytes


@pytest.mark.parametrize("algorithm", ["rtn symmetric", "rtn", "k-quant", "hqq"])
@pytest.mark.parametrize(("bits", "block_size"), [(4, 32), (4, 64), (4, 128), (8, 32), (8, 128)])
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_peer_gives_what_onnxruntimes_tool_and_kernel_give(algorithm: str, bits: int, block_size: int) -> None:
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    peer = OrtQuantizer(algorithm)
    if algorithm == "hqq" and bits == 8:
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="floating-point zero points"):
            _through_the_kernel(weight, algorithm, bits, block_size)
        return
    expected, num_bytes = _through_the_kernel(weight, algorithm, bits, block_size)
    restored = peer.round_trip(weight, bits, block_size).numpy()
    # k-quant compares sums whose last bits depend on the memory's layout, so another trial may win occasionally.
    same = np.isclose(restored, expected, rtol=1e-4, atol=1e-5).all(1)
    assert same.mean() > (0.9 if algorithm == "k-quant" else 0.999)
    assert peer.bits_per_weight(bits, block_size) == pytest.approx(8 * num_bytes / weight.numel())


def test_the_search_without_importance_is_the_search_with_equal_importance() -> None:
    weight = torch.randn(6, 64)
    importance = Importance({"w": torch.ones(2, 64, dtype=torch.bfloat16)})
    plain, search, weighted = (
        algorithm.round_trip("w", weight, 4, 32) for algorithm, _ in zip(algorithms(importance), range(3), strict=False)
    )
    assert torch.equal(search, weighted)
    assert (search - weight).square().sum() < (plain - weight).square().sum()


def test_kl_at_equal_bits_grows_fourfold_a_bit() -> None:
    def outcome(name: str, bits_per_weight: float) -> Outcome:
        return Outcome(name, 4, 32, bits_per_weight, Verdict(0.01, 0.02, 0.001, 0.02, 30.0, 0.9, Counter(), 1.0))

    comparison = compare([outcome("plain", 5.0), outcome("ours", 5.0), outcome("hqq", 6.0)], 4, 32)
    assert comparison["ours"]["equal_bits_kl"] == 0.02
    assert comparison["hqq"]["equal_bits_kl"] == 0.08
