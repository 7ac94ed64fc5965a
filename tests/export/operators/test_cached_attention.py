"""Attention over a float, int8 or int4 cache: function bodies, kernels and plain arithmetic agree on all outputs.

"kernel" stands for ONNX Runtime's kernels as the CPU target chooses them for a step. `WAYS` has steps for every choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch.nn import functional as F

from qwonnx.runtime.cache.host_buffers import HostBinding
from qwonnx.runtime.errors import NativeKernelsError
from qwonnx.runtime.native.library import native_library
from tests.export.operators import single_op
from tests.export.operators.attention_graph import TYPES, cpu_attention, inlined_cpu_attention
from tests.runtime.native.attention import OPERATORS, OUTPUTS

HEADS, KV_HEADS, DIM, CAPACITY = 6, 2, 16, 330
ENGINES = (*single_op.ENGINES, "kernel", "native")
RANGES = {"int8": (-128, 127), "int4": (-8, 7)}
# Lengths of the rows before a step, and its tokens.
WAYS = {
    "one token of many rows": ([7, 300, 0], 1),
    "the first token": ([0], 1),
    "one token, before it pays to fold": ([254], 1),
    "one token, from where it does": ([255], 1),
    "one token far on": ([329], 1),
    "a few tokens": ([9], 6),
    "a chunk": ([290], 40),
    "a first chunk": ([0], 33),
    "first chunks of two rows": ([0, 0], 12),
    "chunks of rows behind one past": ([41, 41], 12),
    "chunks of rows behind different pasts": ([290, 9, 0], 40),
    "two tokens of each of many rows": ([7, 300, 0, 254], 2),
}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Step:
    """Outputs of one step of attention: [B, T, HEADS * DIM], and the buffers after it."""

    attended: np.ndarray
    key: np.ndarray
    value: np.ndarray


def _pack(codes: np.ndarray, kv: str) -> np.ndarray:
    """Codes [..., DIM], or floats, as the cache stores them."""
    if kv != "int4":
        return codes.astype(np.int8 if kv == "int8" else np.float32)
    shifted = (codes + 8).astype(np.uint8)
    return shifted[..., 0::2] | (shifted[..., 1::2] << 4)


def _unpack(stored: np.ndarray, kv: str) -> np.ndarray:
    if kv != "int4":
        return stored.astype(np.float32)
    return np.stack([stored & 15, stored >> 4], axis=-1).reshape(*stored.shape[:-1], -1).astype(np.float32) - 8


def _quantize(x: np.ndarray, scale: np.ndarray, kv: str) -> np.ndarray:
    """x [B, T, KV_HEADS * DIM] -> codes [B, KV_HEADS, T, DIM]; floats stay what they are."""
    heads = x.reshape(*x.shape[:2], KV_HEADS, DIM).swapaxes(1, 2)
    if kv == "float32":
        return heads
    return np.clip(np.rint(heads * (np.float32(1) / scale)), *RANGES[kv])


def _inputs(kv: str, lengths: list[int], num_tokens: int, seed: int = 0) -> Arrays:
    """A step of len(lengths) rows over buffers full of codes, with scales that differ from channel to channel."""
    rng = np.random.default_rng(seed)
    batch = len(lengths)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def buffer() -> np.ndarray:
        if kv == "float32":
            return normal(batch, KV_HEADS, CAPACITY, DIM)
        return _pack(rng.integers(*RANGES[kv], (batch, KV_HEADS, CAPACITY, DIM), endpoint=True), kv)

    def scale() -> np.ndarray:
        return rng.uniform(0.5, 3.0, (1, KV_HEADS, 1, DIM)).astype(np.float32) / RANGES[kv][1]

    inputs = {
        "query": normal(batch, num_tokens, HEADS * DIM),
        "key": normal(batch, num_tokens, KV_HEADS * DIM),
        "value": normal(batch, num_tokens, KV_HEADS * DIM),
        "gate": normal(batch, num_tokens, HEADS * DIM),
        "past_key": buffer(),
        "past_value": buffer(),
        "past_lengths": np.array(lengths),
    }
    return inputs if kv == "float32" else inputs | {"key_scale": scale(), "value_scale": scale()}


def _run(engine: str, kv: str, inputs: Arrays) -> Step:
    if engine in ("kernel", "native"):
        return Step(*_run_lowered(kv, inputs, native=engine == "native"))
    types = (ir.DataType.FLOAT, TYPES[kv], TYPES[kv])
    return Step(*single_op.run(engine, OPERATORS[kv], inputs, 3, types, num_heads=HEADS))


def _run_lowered(kv: str, inputs: Arrays, *, native: bool) -> list[np.ndarray]:
    """As the CPU target computes it, its buffers updated in place."""
    proto = cpu_attention(kv, num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM)
    options = ort.SessionOptions()
    if native:
        try:
            native_library().register(options)
        except NativeKernelsError as missing:
            pytest.skip(str(missing))
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ids = np.zeros(inputs["query"].shape[:2], np.int64)
    buffers = {"past_key": inputs["past_key"].copy(), "past_value": inputs["past_value"].copy()}
    feeds = {**inputs, **buffers, "input_ids": ids}
    binding = session.io_binding()
    for value in session.get_inputs():
        array = feeds[value.name]
        HostBinding(binding).bind_input(value.name, array)
    attended = np.empty_like(inputs["query"])
    for name, array in zip(OUTPUTS, (attended, *buffers.values()), strict=True):
        HostBinding(binding).bind_output(name, array)
    session.run_with_iobinding(binding)
    return [attended, buffers["past_key"], buffers["past_value"]]


def _check(step: Step, inputs: Arrays, kv: str, engine: str) -> None:
    """Compare codes to the last bit, and the output with float attention over the dequantised codes."""
    num_tokens = inputs["query"].shape[1]
    for row, length in enumerate(inputs["past_lengths"]):
        total = length + num_tokens
        stored: Arrays = {}
        for kind, present in (("key", step.key), ("value", step.value)):
            past = inputs[f"past_{kind}"]
            scale = np.ones((1, 1, 1, 1)) if kv == "float32" else inputs[f"{kind}_scale"]
            new = _pack(_quantize(inputs[kind], scale, kv), kv)[row]
            np.testing.assert_array_equal(present[row, :, length:total], new)
            np.testing.assert_array_equal(present[row, :, :length], past[row, :, :length])
            np.testing.assert_array_equal(present[row, :, total:], past[row, :, total:])
            stored[kind] = (
                (_unpack(present[row, :, :total], kv) * scale[0]).astype(np.float32).repeat(HEADS // KV_HEADS, axis=0)
            )
        expected = F.scaled_dot_product_attention(
            torch.tensor(inputs["query"][row]).reshape(num_tokens, HEADS, DIM).transpose(0, 1),
            torch.tensor(stored["key"]),
            torch.tensor(stored["value"]),
            attn_mask=torch.ones(num_tokens, total).tril(int(length)).bool(),
        )
        gated = expected.transpose(0, 1).flatten(1) * torch.tensor(inputs["gate"][row]).sigmoid()
        # Native kernels round queries and weights to 16 bits where the cache is codes (test_attention_codes.py).
        atol = 3e-4 if engine == "native" and kv != "float32" else 1e-5
        np.testing.assert_allclose(step.attended[row], gated.numpy(), atol=atol, rtol=1e-4)


@pytest.mark.parametrize("kv", TYPES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("lengths", "num_tokens"), WAYS.values(), ids=WAYS.keys())
def test_caches_and_outputs_are_those_of_plain_arithmetic(
    engine: str, kv: str, lengths: list[int], num_tokens: int
) -> None:
    inputs = _inputs(kv, lengths, num_tokens)
    _check(_run(engine, kv, inputs), inputs, kv, engine)


@pytest.mark.parametrize("kv", TYPES)
@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_computed_as_it_is_fastest(kv: str, way: str) -> None:
    lengths, num_tokens = WAYS[way]
    inlined = inlined_cpu_attention(kv, num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM)
    proto = onnx.shape_inference.infer_shapes(inlined)
    (choice,) = (node for node in proto.graph.node if node.op_type == "If")
    part = onnx.utils.Extractor(proto).extract_model(["input_ids", "past_lengths"], [choice.input[0]])
    session = ort.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": np.zeros((len(lengths), num_tokens), np.int64), "past_lengths": np.array(lengths)}
    (is_special,) = session.run(None, feeds)
    if kv == "float32":
        assert bool(is_special) == (way in ("one token, from where it does", "one token far on"))
    else:
        assert bool(is_special) == ("chunk" in way and "chunks of rows" not in way)


@pytest.mark.parametrize("kv", ["int8", "int4"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_value_beyond_the_range_saturates_and_never_wraps(engine: str, kv: str) -> None:
    inputs = _inputs(kv, [3], 2, seed=1)
    low, high = RANGES[kv]
    for kind in ("key", "value"):
        step = np.broadcast_to(inputs[f"{kind}_scale"].reshape(1, -1), inputs[kind][0].shape)
        # Just above the largest code, and so far that a 32-bit integer would overflow.
        inputs[kind][0, 0, 0::2] = (high + 0.6) * step[0, 0::2]
        inputs[kind][0, 0, 1::2] = 1e30
        inputs[kind][0, 1, 0::2] = (low - 0.6) * step[1, 0::2]
        inputs[kind][0, 1, 1::2] = -1e30
    after = _run(engine, kv, inputs)
    for present in (after.key, after.value):
        codes = _unpack(present, kv)
        assert (codes[0, :, 3] == high).all()
        assert (codes[0, :, 4] == low).all()
    assert np.isfinite(after.attended).all()
    _check(after, inputs, kv, engine)


@pytest.mark.parametrize("kv", ["int8", "int4"])
@pytest.mark.parametrize("engine", ENGINES)
def test_halves_round_to_even(engine: str, kv: str) -> None:
    inputs = _inputs(kv, [0], 4, seed=2)
    inputs["key_scale"][:] = inputs["value_scale"][:] = 0.25
    inputs["key"][0, :, :4] = np.array([[0.125, -0.125, 0.375, -0.375]] * 4)
    codes = _unpack(_run(engine, kv, inputs).key, kv)
    np.testing.assert_array_equal(codes[0, 0, :4, :4], [[0, 0, 2, -2]] * 4)


@pytest.mark.parametrize("kv", TYPES)
def test_tokens_one_by_one_leave_the_cache_of_one_chunk(kv: str) -> None:
    first, num_tokens = 246, 20  # on the way, one token at a time begins to be folded
    whole = _inputs(kv, [first], num_tokens, seed=3)
    expected = _run("kernel", kv, whole)
    buffers, attended = {name: whole[name] for name in ("past_key", "past_value")}, []
    for token in range(num_tokens):
        part = {name: whole[name][:, token : token + 1] for name in ("query", "key", "value", "gate")}
        step = _run("kernel", kv, {**whole, **part, **buffers, "past_lengths": np.array([first + token])})
        buffers = {"past_key": step.key, "past_value": step.value}
        attended.append(step.attended)
    np.testing.assert_array_equal(buffers["past_key"], expected.key)
    np.testing.assert_array_equal(buffers["past_value"], expected.value)
    np.testing.assert_allclose(np.concatenate(attended, axis=1), expected.attended, atol=1e-6, rtol=1e-5)
