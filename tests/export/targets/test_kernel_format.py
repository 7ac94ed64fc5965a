"""ONNX Runtime's kernels read our byte format: each is compared with float32 arithmetic on the dequantised weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from qwonnx.export.quantization.quantize import quantize_blocks
from tests.export.dequantized import dequantize_blocks

pytestmark = pytest.mark.fast


def _quantized(shape: tuple[int, ...], bits: int, block_size: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """Codes and scales of normal weights, and their dequantised float32 weights."""
    columns = shape[-1]
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(3)) / columns**0.5
    codes = torch.empty((*shape[:-1], columns * bits // 8), dtype=torch.uint8)
    scales = torch.empty((*shape[:-1], columns // block_size))
    quantize_blocks(weights.view(-1, columns), bits, codes.view(-1, codes.shape[-1]), scales.view(-1, scales.shape[-1]))
    return codes.numpy(), scales.numpy(), dequantize_blocks(codes, scales, bits)


def _run(
    op_type: str, inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray], order: list[str], **attributes: Any
) -> np.ndarray:
    """One node of domain com.microsoft, its weights as initializers, as in an artifact."""
    graph = helper.make_graph(
        [helper.make_node(op_type, order, ["y"], domain="com.microsoft", **attributes)],
        "kernel",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], inputs)[0])


@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("block_size", [16, 32, 128, 256])
@pytest.mark.parametrize("bits", [4, 8])
def test_matmul_n_bits(bits: int, block_size: int, num_tokens: int) -> None:
    codes, scales, weights = _quantized((48, 256), bits, block_size)
    x = np.random.default_rng(0).standard_normal((num_tokens, 256)).astype(np.float32)
    y = _run(
        "MatMulNBits",
        {"x": x},
        {"codes": codes.reshape(48, 256 // block_size, -1), "scales": scales},
        ["x", "codes", "scales"],
        K=256,
        N=48,
        bits=bits,
        block_size=block_size,
        accuracy_level=1,
    )
    np.testing.assert_allclose(y, x @ weights.numpy().T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_gather_block_quantized(bits: int) -> None:
    codes, scales, weights = _quantized((10, 64), bits, 32)
    ids = np.array([[0, 9, 4]])
    y = _run(
        "GatherBlockQuantized",
        {"ids": ids},
        {"codes": codes, "scales": scales},
        ["codes", "ids", "scales"],
        bits=bits,
        block_size=32,
        gather_axis=0,
        quantize_axis=1,
    )
    np.testing.assert_array_equal(y, weights.numpy()[ids])


def _affine(shape: tuple[int, ...], bits: int, block_size: int) -> dict[str, np.ndarray]:
    """Random codes, scales and zero points, packed, and their dequantised float32 weights."""
    rng = np.random.default_rng(4)
    *rows, columns = shape
    blocks = columns // block_size
    values, zero_points = rng.integers(0, 2**bits, shape), rng.integers(0, 2**bits, (*rows, blocks))
    scales = (rng.uniform(1, 2, (*rows, blocks)) / 2**bits / columns**0.5).astype(np.float32)
    weights = (values - zero_points.repeat(block_size, -1)).astype(np.float32) * scales.repeat(block_size, -1)
    return {
        "codes": _pack(values, bits),
        "scales": scales,
        "zero_points": _pack(zero_points, bits),
        "weights": weights.astype(np.float32),
    }


def _pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Low bits first; every row starts a new byte."""
    if bits == 8:
        return values.astype(np.uint8)
    padded = np.concatenate([values, np.full((*values.shape[:-1], values.shape[-1] % 2), 5)], -1)
    packed: np.ndarray = padded[..., 0::2] | padded[..., 1::2] << 4
    return packed.astype(np.uint8)


@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize(("block_size", "columns"), [(16, 48), (32, 256), (128, 384)])
@pytest.mark.parametrize("bits", [4, 8])
def test_matmul_n_bits_with_zero_points(bits: int, block_size: int, columns: int, num_tokens: int) -> None:
    stored = _affine((48, columns), bits, block_size)
    x = np.random.default_rng(0).standard_normal((num_tokens, columns)).astype(np.float32)
    codes = stored["codes"].reshape(48, columns // block_size, -1)
    y = _run(
        "MatMulNBits",
        {"x": x},
        {"codes": codes, "scales": stored["scales"], "zero_points": stored["zero_points"]},
        ["x", "codes", "scales", "zero_points"],
        K=columns,
        N=48,
        bits=bits,
        block_size=block_size,
        accuracy_level=1,
    )
    np.testing.assert_allclose(y, x @ stored["weights"].T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_gather_block_quantized_with_zero_points(bits: int) -> None:
    stored = _affine((10, 96), bits, 32)
    ids = np.array([[0, 9, 4]])
    weights = stored.pop("weights")
    order = ["codes", "ids", "scales", "zero_points"]
    y = _run(
        "GatherBlockQuantized", {"ids": ids}, stored, order, bits=bits, block_size=32, gather_axis=0, quantize_axis=1
    )
    np.testing.assert_array_equal(y, weights[ids])


# The kernel for 8 bits quantises activations at every accuracy level.
@pytest.mark.parametrize(("bits", "tolerance"), [(4, 1e-5), (8, 0.1)])
@pytest.mark.parametrize("num_tokens", [1, 7])
@pytest.mark.parametrize("zero_points", [False, True])
def test_qmoe_with_alternating_gate_and_up_rows(
    bits: int, tolerance: float, num_tokens: int, zero_points: bool
) -> None:
    num_experts, hidden, inner, top_k = 4, 96, 32, 2  # three blocks a row: zero points of 4 bits end within a byte
    shapes = {"gate_up": (num_experts, 2 * inner, hidden), "down": (num_experts, hidden, inner)}
    constants: dict[str, np.ndarray] = {}
    weights: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        if zero_points:
            stored = _affine(shape, bits, 32)
            constants |= {f"{name}_{part}": stored[part] for part in ("codes", "scales", "zero_points")}
            weights[name] = torch.tensor(stored["weights"])
        else:
            constants[f"{name}_codes"], constants[f"{name}_scales"], weights[name] = _quantized(shape, bits, 32)
    order = ["x", "logits", "gate_up_codes", "gate_up_scales", "", "down_codes", "down_scales"]
    if zero_points:
        order += ["", "", "", "", "gate_up_zero_points", "down_zero_points"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((num_tokens, hidden), generator=generator)
    logits = 3 * torch.randn((num_tokens, num_experts), generator=generator)
    y = _run(
        "QMoE",
        {"x": x.numpy(), "logits": logits.numpy()},
        constants,
        order,
        k=top_k,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        normalize_routing_weights=1,
        expert_weight_bits=bits,
        block_size=32,
        accuracy_level=1,
    )
    routing, chosen = logits.softmax(-1).topk(top_k)
    routing = routing / routing.sum(-1, keepdim=True)
    expected = torch.zeros_like(x)
    for token in range(num_tokens):
        for weight, expert in zip(routing[token], chosen[token], strict=True):
            rows = weights["gate_up"][expert] @ x[token]
            expected[token] += weight * (weights["down"][expert] @ (F.silu(rows[0::2]) * rows[1::2]))
    np.testing.assert_allclose(y, expected.numpy(), atol=tolerance, rtol=0)
