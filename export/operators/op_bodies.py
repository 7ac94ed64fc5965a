"""Definitions of the `ai.qwonnx` operators: one ONNX function each, in standard operators of opset 23.

The bodies are the executable specification. The portable target ships them; every other lowering is tested against
them. `ops.py` states the shapes of the operators that are traced. The Quantized ones appear when a lowering replaces
float weights by codes and scales; they compute the same after `Dequantize`. The Affine ones also have zero points. They
are separate operators, because a function's body cannot test for an optional input.

onnxscript compiles the bodies, so they are a subset of Python: `op` is the standard domain, `own` is ours.
attention_bodies.py has the bodies of attention, one variant for each type of cache.
"""

# mypy: ignore-errors
# ruff: noqa: RET504  (onnxscript compiles the functions below: what they return must have a name)

from __future__ import annotations

from onnxscript import FLOAT, INT64, UINT8, graph, script
from onnxscript import opset23 as op
from onnxscript.values import Opset

from qwonnx.export.operators.ops import DOMAIN, VERSION

OPSET = 23
own = Opset(DOMAIN, VERSION)


@script(own)
def Embedding(input_ids: INT64, weight: FLOAT) -> FLOAT:
    return op.Gather(weight, input_ids, axis=0)


@script(own)
def Linear(x: FLOAT, weight: FLOAT) -> FLOAT:
    return op.MatMul(x, op.Transpose(weight, perm=[1, 0]))


@script(own)
def UnpackBits(codes: UINT8, width: INT64) -> FLOAT:
    """codes [..., n] of `width` bits each (width []), low bits first -> whole numbers [..., n * 8 / width]."""
    zero_int = op.Constant(value_int=0)
    eight = op.Constant(value_int=8)
    shifts = op.Cast(op.Range(zero_int, eight, width), to=UINT8.dtype)
    levels = op.Pow(op.Constant(value_float=2.0), op.Cast(width, to=FLOAT.dtype))
    mask = op.Cast(levels - 1.0, to=UINT8.dtype)
    values = op.BitwiseAnd(op.BitShift(op.Unsqueeze(codes, [-1]), shifts, direction="RIGHT"), mask)
    merged = op.Concat(op.Shape(codes, start=0, end=-1), [-1], axis=0)
    return op.Cast(op.Reshape(values, merged), to=FLOAT.dtype)


@script(own)
def Unpack(codes: UINT8, scales: FLOAT, width: INT64) -> FLOAT:
    """codes [..., K * width / 8], low bits first; scales [..., K / weight_block_size]; width [] in bits -> [..., K]."""
    values = own.UnpackBits(codes, width)
    middle = op.Pow(op.Constant(value_float=2.0), op.Cast(width, to=FLOAT.dtype)) / 2.0
    # Each row of `blocked` has one scale: [..., K / weight_block_size, weight_block_size].
    blocked = op.Reshape(values - middle, op.Concat(op.Shape(scales), [-1], axis=0))
    return op.Reshape(blocked * op.Unsqueeze(scales, [-1]), op.Shape(values))


@script(own)
def UnpackAffine(codes: UINT8, scales: FLOAT, zero_points: UINT8, width: INT64) -> FLOAT:
    """As Unpack, with zero_points [..., ceil(K / weight_block_size * width / 8)], packed as codes are."""
    values = own.UnpackBits(codes, width)
    blocked = op.Reshape(values, op.Concat(op.Shape(scales), [-1], axis=0))
    # The last byte of a row may hold fewer zero points than it has room for.
    offsets = op.Slice(own.UnpackBits(zero_points, width), [0], op.Shape(scales, start=-1), [-1])
    return op.Reshape((blocked - op.Unsqueeze(offsets, [-1])) * op.Unsqueeze(scales, [-1]), op.Shape(values))


@script(own)
def Dequantize(codes: UINT8, scales: FLOAT, bits: int) -> FLOAT:
    return own.Unpack(codes, scales, op.Constant(value_int=bits))


@script(own)
def DequantizeAffine(codes: UINT8, scales: FLOAT, zero_points: UINT8, bits: int) -> FLOAT:
    return own.UnpackAffine(codes, scales, zero_points, op.Constant(value_int=bits))


@script(own)
def QuantizedEmbedding(input_ids: INT64, codes: UINT8, scales: FLOAT, bits: int) -> FLOAT:
    return own.Dequantize(op.Gather(codes, input_ids, axis=0), op.Gather(scales, input_ids, axis=0), bits=bits)


@script(own)
def AffineEmbedding(input_ids: INT64, codes: UINT8, scales: FLOAT, zero_points: UINT8, bits: int) -> FLOAT:
    row_codes = op.Gather(codes, input_ids, axis=0)
    row_scales = op.Gather(scales, input_ids, axis=0)
    return own.DequantizeAffine(row_codes, row_scales, op.Gather(zero_points, input_ids, axis=0), bits=bits)


@script(own)
def QuantizedLinear(x: FLOAT, codes: UINT8, scales: FLOAT, bits: int) -> FLOAT:
    return own.Linear(x, own.Dequantize(codes, scales, bits=bits))


@script(own)
def AffineLinear(x: FLOAT, codes: UINT8, scales: FLOAT, zero_points: UINT8, bits: int) -> FLOAT:
    return own.Linear(x, own.DequantizeAffine(codes, scales, zero_points, bits=bits))


@script(own)
def AddAdapters(y: FLOAT, x: FLOAT, slots: INT64, adapters: FLOAT, offset: int) -> FLOAT:
    """y [B, T, N] of a projection of x [B, T, K], and what the adapter of each row's slot adds; slot 0 adds nothing.

    slots is [B], adapters [num_slots, width, rank]. Its rows from offset on are a matrix [K, rank], and the N rows
    behind them, in their order, one that is [rank, N].
    """
    start = op.Reshape(op.Constant(value_int=offset), [-1])
    num_outputs = op.Shape(y, start=-1)
    middle = start + op.Shape(x, start=-1)
    down = op.Gather(op.Slice(adapters, start, middle, [1]), slots, axis=0)
    rows = op.Gather(op.Slice(adapters, middle, middle + num_outputs, [1]), slots, axis=0)
    up = op.Reshape(rows, op.Concat(op.Shape(slots), op.Shape(adapters, start=2), num_outputs, axis=0))
    return y + op.MatMul(op.MatMul(x, down), up)


@script(own)
def GatedRMSNorm(x: FLOAT, gate: FLOAT, weight: FLOAT, epsilon: float) -> FLOAT:
    heads = op.Reshape(x, op.Concat([0, 0, -1], op.Shape(weight), axis=0))
    eps = op.Constant(value_float=epsilon)
    mean_square = op.ReduceMean(heads * heads, [-1], keepdims=1)
    normed = heads / op.Sqrt(mean_square + eps) * weight
    return op.Reshape(normed, op.Shape(x)) * (gate * op.Sigmoid(gate))


@script(own)
def CausalConv(x: FLOAT, weight: FLOAT, past_state: FLOAT) -> tuple[FLOAT, FLOAT]:
    window = op.Concat(past_state, op.Transpose(x, perm=[0, 2, 1]), axis=2)  # [B, C, K - 1 + T]
    channels = op.Shape(weight, start=0, end=1)
    taps = op.Squeeze(weight, [1])  # [C, K]
    num_taps = op.Shape(taps, start=1, end=2)
    num_tokens = op.Shape(x, start=1, end=2)
    # Every token's K inputs side by side: y[b, c, t] = sum over j of window[b, c, t + j] * taps[c, j].
    tap_indices = op.Range(op.Constant(value_int=0), op.Squeeze(num_taps), op.Constant(value_int=1))
    token_indices = op.Range(op.Constant(value_int=0), op.Squeeze(num_tokens), op.Constant(value_int=1))
    indices = op.Unsqueeze(token_indices, [1]) + op.Unsqueeze(tap_indices, [0])  # [T, K]
    patches = op.Gather(window, indices, axis=2)  # [B, C, T, K]
    kernel = op.Reshape(taps, op.Concat(channels, [1], num_taps, axis=0))
    y = op.ReduceSum(patches * kernel, [-1], keepdims=0)
    present_state = op.Slice(window, num_tokens, num_tokens + num_taps - 1, [2])
    return op.Transpose(y * op.Sigmoid(y), perm=[0, 2, 1]), present_state


@script(own)
def L2Norm(x: FLOAT, epsilon: float) -> FLOAT:
    """x / sqrt(sum of squares over the last axis + epsilon)."""
    eps = op.Constant(value_float=epsilon)
    return x / op.Sqrt(op.ReduceSum(x * x, [-1], keepdims=1) + eps)


@script(own)
def GatedDeltaRule(
    qkv: FLOAT,
    b: FLOAT,
    a: FLOAT,
    decay_scale: FLOAT,
    dt_bias: FLOAT,
    past_state: FLOAT,
    num_key_heads: int,
    epsilon: float,
) -> tuple[FLOAT, FLOAT]:
    key_heads = op.Reshape(op.Constant(value_int=num_key_heads), [1])
    value_heads = op.Shape(past_state, start=1, end=2)
    key_dim = op.Shape(past_state, start=2, end=3)
    value_dim = op.Shape(past_state, start=3, end=4)
    key_width = key_heads * key_dim
    q, k, v = op.Split(qkv, op.Concat(key_width, key_width, value_heads * value_dim, axis=0), axis=2)

    # Key head j serves the value heads j * r ... j * r + r - 1.
    split_heads = op.Concat([0, 0], key_heads, [1], key_dim, axis=0)
    repeats = op.Concat([1, 1, 1], value_heads / key_heads, [1], axis=0)
    merged_heads = op.Concat([0, 0], value_heads, key_dim, axis=0)
    scale = op.Sqrt(op.Cast(key_dim, to=FLOAT.dtype))
    q_unit = own.L2Norm(op.Reshape(q, split_heads), epsilon=epsilon) / scale
    k_unit = own.L2Norm(op.Reshape(k, split_heads), epsilon=epsilon)
    q_heads = op.Reshape(op.Tile(q_unit, repeats), merged_heads)  # [B, T, Hv, Dk]
    k_heads = op.Reshape(op.Tile(k_unit, repeats), merged_heads)
    v_heads = op.Reshape(v, op.Concat([0, 0], value_heads, value_dim, axis=0))

    decay = op.Exp(decay_scale * op.Softplus(a + dt_bias))  # [B, T, Hv]
    beta = op.Sigmoid(b)

    @graph()
    def step(state, q_t, k_t, v_t, decay_t, beta_t):
        k_column = op.Unsqueeze(k_t, [-1])  # [B, Hv, Dk, 1]
        decayed = state * op.Unsqueeze(decay_t, [-1, -2])
        remembered = op.ReduceSum(decayed * k_column, [-2], keepdims=0)  # [B, Hv, Dv]
        delta = (v_t - remembered) * op.Unsqueeze(beta_t, [-1])
        updated = decayed + k_column * op.Unsqueeze(delta, [-2])
        read = op.ReduceSum(updated * op.Unsqueeze(q_t, [-1]), [-2], keepdims=0)
        return updated, read

    # Time goes first: onnx.reference scans over the first axis only.
    present_state, o = op.Scan(
        past_state,
        op.Transpose(q_heads, perm=[1, 0, 2, 3]),
        op.Transpose(k_heads, perm=[1, 0, 2, 3]),
        op.Transpose(v_heads, perm=[1, 0, 2, 3]),
        op.Transpose(decay, perm=[1, 0, 2]),
        op.Transpose(beta, perm=[1, 0, 2]),
        body=step,
        num_scan_inputs=5,
    )
    return op.Reshape(op.Transpose(o, perm=[1, 0, 2, 3]), [0, 0, -1]), present_state


@script(own)
def RouteTokens(tokens: FLOAT, router: FLOAT, top_k: int) -> FLOAT:
    """tokens [N, H], router [E, H] -> [E, N]: the weight of each token in each expert, 0 where it is not routed."""
    logits = op.MatMul(tokens, op.Transpose(router, perm=[1, 0]))
    scores, experts = op.TopK(op.Softmax(logits, axis=-1), op.Reshape(op.Constant(value_int=top_k), [1]), axis=-1)
    weights = scores / op.ReduceSum(scores, [-1], keepdims=1)
    nothing = op.ConstantOfShape(op.Shape(logits))
    return op.Transpose(op.ScatterElements(nothing, experts, weights, axis=1), perm=[1, 0])


@script(own)
def AddExpert(total: FLOAT, tokens: FLOAT, weights: FLOAT, gate_up: FLOAT, down: FLOAT) -> FLOAT:
    """Add one expert's share to total [N, H], computed for the tokens whose weight (of weights [N]) is not zero."""
    routed = op.Squeeze(op.NonZero(weights), [0])
    # Rows alternate gate, up: [n, 2 * I] -> [n, I, 2].
    paired = op.Concat(op.Shape(routed), op.Shape(down, start=1, end=2), [2], axis=0)  # no -1: n may be 0
    pairs = op.Reshape(own.Linear(op.Gather(tokens, routed, axis=0), gate_up), paired)
    gate, up = op.Split(pairs, num_outputs=2, axis=2)
    hidden = op.Squeeze(gate * op.Sigmoid(gate) * up, [2])
    share = own.Linear(hidden, down) * op.Unsqueeze(op.Gather(weights, routed, axis=0), [1])
    return op.ScatterND(total, op.Unsqueeze(routed, [1]), share, reduction="add")


@script(own)
def RoutedExperts(x: FLOAT, router: FLOAT, gate_up: FLOAT, down: FLOAT, top_k: int) -> FLOAT:
    tokens = op.Reshape(x, op.Concat([-1], op.Shape(x, start=2, end=3), axis=0))
    weights = own.RouteTokens(tokens, router, top_k=top_k)

    @graph()
    def add_expert(total, expert_weights, expert_gate_up, expert_down):
        added = own.AddExpert(total, tokens, expert_weights, expert_gate_up, expert_down)
        return added

    total = op.Scan(op.ConstantOfShape(op.Shape(tokens)), weights, gate_up, down, body=add_expert, num_scan_inputs=3)
    return op.Reshape(total, op.Shape(x), allowzero=1)  # x may have no tokens


@script(own)
def QuantizedRoutedExperts(
    x: FLOAT,
    router: FLOAT,
    gate_up_codes: UINT8,
    gate_up_scales: FLOAT,
    down_codes: UINT8,
    down_scales: FLOAT,
    top_k: int,
    gate_up_bits: int,
    down_bits: int,
) -> FLOAT:
    tokens = op.Reshape(x, op.Concat([-1], op.Shape(x, start=2, end=3), axis=0))
    weights = own.RouteTokens(tokens, router, top_k=top_k)

    # Not attributes of the inner calls: onnx.reference does not pass a function's attributes on into a Scan's body.
    gate_up_width = op.Constant(value_int=gate_up_bits)
    down_width = op.Constant(value_int=down_bits)

    @graph()
    def add_expert(total, expert_weights, gate_up_c, gate_up_s, down_c, down_s):
        gate_up = own.Unpack(gate_up_c, gate_up_s, gate_up_width)
        down = own.Unpack(down_c, down_s, down_width)
        added = own.AddExpert(total, tokens, expert_weights, gate_up, down)
        return added

    total = op.Scan(
        op.ConstantOfShape(op.Shape(tokens)),
        weights,
        gate_up_codes,
        gate_up_scales,
        down_codes,
        down_scales,
        body=add_expert,
        num_scan_inputs=5,
    )
    return op.Reshape(total, op.Shape(x), allowzero=1)  # x may have no tokens


@script(own)
def AffineRoutedExperts(
    x: FLOAT,
    router: FLOAT,
    gate_up_codes: UINT8,
    gate_up_scales: FLOAT,
    gate_up_zero_points: UINT8,
    down_codes: UINT8,
    down_scales: FLOAT,
    down_zero_points: UINT8,
    top_k: int,
    gate_up_bits: int,
    down_bits: int,
) -> FLOAT:
    tokens = op.Reshape(x, op.Concat([-1], op.Shape(x, start=2, end=3), axis=0))
    weights = own.RouteTokens(tokens, router, top_k=top_k)
    gate_up_width = op.Constant(value_int=gate_up_bits)  # not attributes within the Scan: see QuantizedRoutedExperts
    down_width = op.Constant(value_int=down_bits)

    @graph()
    def add_expert(total, expert_weights, gate_up_c, gate_up_s, gate_up_z, down_c, down_s, down_z):
        gate_up = own.UnpackAffine(gate_up_c, gate_up_s, gate_up_z, gate_up_width)
        down = own.UnpackAffine(down_c, down_s, down_z, down_width)
        added = own.AddExpert(total, tokens, expert_weights, gate_up, down)
        return added

    total = op.Scan(
        op.ConstantOfShape(op.Shape(tokens)),
        weights,
        gate_up_codes,
        gate_up_scales,
        gate_up_zero_points,
        down_codes,
        down_scales,
        down_zero_points,
        body=add_expert,
        num_scan_inputs=7,
    )
    return op.Reshape(total, op.Shape(x), allowzero=1)  # x may have no tokens
