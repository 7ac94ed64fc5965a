"""Definitions of attention in `ai.qwonnx`, with a cache of float32, int8, int4 or float8: see op_bodies.py.

All four are causal grouped-query attention over the buffers' filled part; they differ in how a buffer stores a value.
A quantised buffer stores round(value / scale) with one scale a channel, clipped to the range of its bits, so that an
outlier saturates and never wraps. The step's own keys and values are also read back from the buffer: a token sees the
same values if they come from its own step or from an earlier one.
"""

# mypy: ignore-errors

from __future__ import annotations

from onnxscript import FLOAT, FLOAT8E4M3FN, INT8, INT64, UINT8, script
from onnxscript import opset23 as op

from qwonnx.export.operators.op_bodies import own


@script(own)
def NewPositions(query: FLOAT, past_lengths: INT64) -> INT64:
    """The places [B, T] in the cache of this step's tokens, T as in query [B, T, ...]."""
    zero = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    num_tokens = op.Squeeze(op.Shape(query, start=1, end=2))
    return op.Unsqueeze(past_lengths, [1]) + op.Unsqueeze(op.Range(zero, num_tokens, one), [0])


@script(own)
def HeadsLike(x: FLOAT, past: FLOAT) -> FLOAT:
    """x [B, T, num_kv_heads * D] -> [B, num_kv_heads, T, D], with as many heads as past [B, num_kv_heads, M, ...]."""
    split = op.Concat([0, 0], op.Shape(past, start=1, end=2), [-1], axis=0)
    return op.Transpose(op.Reshape(x, split), perm=[0, 2, 1, 3])


@script(own)
def AppendToCache(past: FLOAT, new: FLOAT, positions: INT64) -> FLOAT:
    """Write new [B, num_kv_heads, T, W] into past [B, num_kv_heads, M, W] at positions [B, T] of the axis M."""
    return op.ScatterElements(past, op.Expand(op.Unsqueeze(positions, [1, 3]), op.Shape(new)), new, axis=2)


@script(own)
def Filled(present: FLOAT, positions: INT64) -> FLOAT:
    """The first N places of present [B, num_kv_heads, M, W]: N is the longest row's length after this step."""
    length = op.ReduceMax(positions, keepdims=0) + op.Constant(value_int=1)
    return op.Slice(present, [0], op.Unsqueeze(length, [0]), [2])


@script(own)
def AttendGated(query: FLOAT, gate: FLOAT, keys: FLOAT, values: FLOAT, positions: INT64, num_heads: int) -> FLOAT:
    """query and gate [B, T, num_heads * D] over keys and values [B, num_kv_heads, N, D] up to positions [B, T]."""
    heads = op.Reshape(op.Constant(value_int=num_heads), [1])
    num_kv_heads = op.Shape(keys, start=1, end=2)
    head_dim = op.Shape(keys, start=3, end=4)
    grouped = op.Concat([0, 0], num_kv_heads, heads / num_kv_heads, head_dim, axis=0)
    queries = op.Transpose(op.Reshape(query, grouped), perm=[0, 2, 3, 1, 4])  # [B, num_kv_heads, group, T, D]
    shared_keys = op.Transpose(op.Unsqueeze(keys, [2]), perm=[0, 1, 2, 4, 3])  # [B, num_kv_heads, 1, D, N]
    scores = op.MatMul(queries, shared_keys) / op.Sqrt(op.Cast(head_dim, to=FLOAT.dtype))
    zero = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    places = op.Range(zero, op.Squeeze(op.Shape(keys, start=2, end=3)), one)
    visible = op.LessOrEqual(op.Unsqueeze(places, [0, 1, 2, 3]), op.Unsqueeze(positions, [1, 2, 4]))  # [B, 1, 1, T, N]
    weights = op.Softmax(op.Where(visible, scores, op.Constant(value_float=-1e30)), axis=-1)
    summed = op.MatMul(weights, op.Unsqueeze(values, [2]))
    attended = op.Transpose(summed, perm=[0, 3, 1, 2, 4])  # [B, T, num_kv_heads, group, D]
    return op.Reshape(attended, [0, 0, -1]) * op.Sigmoid(gate)


@script(own)
def GatedAttention(
    query: FLOAT,
    key: FLOAT,
    value: FLOAT,
    gate: FLOAT,
    past_key: FLOAT,
    past_value: FLOAT,
    past_lengths: INT64,
    num_heads: int,
) -> tuple[FLOAT, FLOAT, FLOAT]:
    positions = own.NewPositions(query, past_lengths)
    present_key = own.AppendToCache(past_key, own.HeadsLike(key, past_key), positions)
    present_value = own.AppendToCache(past_value, own.HeadsLike(value, past_value), positions)
    keys = own.Filled(present_key, positions)
    values = own.Filled(present_value, positions)
    return own.AttendGated(query, gate, keys, values, positions, num_heads=num_heads), present_key, present_value


@script(own)
def ToInt8(x: FLOAT, scale: FLOAT) -> INT8:
    """x [B, num_kv_heads, T, D], scale [1, num_kv_heads, 1, D]. Times the reciprocal, as the kernels compute it."""
    low = op.Constant(value_float=-128.0)
    high = op.Constant(value_float=127.0)
    return op.Cast(op.Clip(op.Round(x * op.Reciprocal(scale)), low, high), to=INT8.dtype)


@script(own)
def FromInt8(codes: INT8, scale: FLOAT) -> FLOAT:
    return op.Cast(codes, to=FLOAT.dtype) * scale


@script(own)
def ToInt4(x: FLOAT, scale: FLOAT) -> UINT8:
    """Two channels a byte, the even one in the low half, each as code + 8: [B, num_kv_heads, T, D / 2]."""
    low = op.Constant(value_float=-8.0)
    high = op.Constant(value_float=7.0)
    codes = op.Clip(op.Round(x * op.Reciprocal(scale)), low, high) + 8.0
    pairs = op.Reshape(codes, [0, 0, 0, -1, 2])
    return op.Cast(op.ReduceSum(pairs * op.Constant(value_floats=[1.0, 16.0]), [-1], keepdims=0), to=UINT8.dtype)


@script(own)
def FromInt4(codes: UINT8, scale: FLOAT) -> FLOAT:
    mask = op.Cast(op.Constant(value_int=15), to=UINT8.dtype)
    four = op.Cast(op.Constant(value_int=4), to=UINT8.dtype)
    even = op.BitwiseAnd(codes, mask)
    odd = op.BitShift(codes, four, direction="RIGHT")
    pairs = op.Concat(op.Unsqueeze(even, [-1]), op.Unsqueeze(odd, [-1]), axis=-1)
    return (op.Cast(op.Reshape(pairs, [0, 0, 0, -1]), to=FLOAT.dtype) - 8.0) * scale


@script(own)
def GatedAttentionInt8(
    query: FLOAT,
    key: FLOAT,
    value: FLOAT,
    gate: FLOAT,
    past_key: INT8,
    past_value: INT8,
    past_lengths: INT64,
    key_scale: FLOAT,
    value_scale: FLOAT,
    num_heads: int,
) -> tuple[FLOAT, INT8, INT8]:
    positions = own.NewPositions(query, past_lengths)
    new_key = own.ToInt8(own.HeadsLike(key, past_key), key_scale)
    new_value = own.ToInt8(own.HeadsLike(value, past_value), value_scale)
    present_key = own.AppendToCache(past_key, new_key, positions)
    present_value = own.AppendToCache(past_value, new_value, positions)
    keys = own.FromInt8(own.Filled(present_key, positions), key_scale)
    values = own.FromInt8(own.Filled(present_value, positions), value_scale)
    return own.AttendGated(query, gate, keys, values, positions, num_heads=num_heads), present_key, present_value


@script(own)
def GatedAttentionInt4(
    query: FLOAT,
    key: FLOAT,
    value: FLOAT,
    gate: FLOAT,
    past_key: UINT8,
    past_value: UINT8,
    past_lengths: INT64,
    key_scale: FLOAT,
    value_scale: FLOAT,
    num_heads: int,
) -> tuple[FLOAT, UINT8, UINT8]:
    positions = own.NewPositions(query, past_lengths)
    new_key = own.ToInt4(own.HeadsLike(key, past_key), key_scale)
    new_value = own.ToInt4(own.HeadsLike(value, past_value), value_scale)
    present_key = own.AppendToCache(past_key, new_key, positions)
    present_value = own.AppendToCache(past_value, new_value, positions)
    keys = own.FromInt4(own.Filled(present_key, positions), key_scale)
    values = own.FromInt4(own.Filled(present_value, positions), value_scale)
    return own.AttendGated(query, gate, keys, values, positions, num_heads=num_heads), present_key, present_value


@script(own)
def RoundToFloat8(x: FLOAT, scale: FLOAT) -> FLOAT:
    """x / scale [B, num_kv_heads, T, D] as float8 has it, with sign, 4 bits of exponent and 3 of fraction."""
    low = op.Constant(value_float=-448.0)
    high = op.Constant(value_float=448.0)
    return op.Cast(op.Cast(op.Clip(x * op.Reciprocal(scale), low, high), to=FLOAT8E4M3FN.dtype), to=FLOAT.dtype)


@script(own)
def GatedAttentionFloat8(
    query: FLOAT,
    key: FLOAT,
    value: FLOAT,
    gate: FLOAT,
    past_key: FLOAT8E4M3FN,
    past_value: FLOAT8E4M3FN,
    past_lengths: INT64,
    key_scale: FLOAT,
    value_scale: FLOAT,
    num_heads: int,
) -> tuple[FLOAT, FLOAT8E4M3FN, FLOAT8E4M3FN]:
    """Buffers are appended to as float32, because ONNX's operators that write into a tensor do not take float8."""
    positions = own.NewPositions(query, past_lengths)
    old_key = op.Cast(past_key, to=FLOAT.dtype)
    old_value = op.Cast(past_value, to=FLOAT.dtype)
    new_key = own.RoundToFloat8(own.HeadsLike(key, old_key), key_scale)
    new_value = own.RoundToFloat8(own.HeadsLike(value, old_value), value_scale)
    present_key = own.AppendToCache(old_key, new_key, positions)
    present_value = own.AppendToCache(old_value, new_value, positions)
    keys = own.Filled(present_key, positions) * key_scale
    values = own.Filled(present_value, positions) * value_scale
    return (
        own.AttendGated(query, gate, keys, values, positions, num_heads=num_heads),
        op.Cast(present_key, to=FLOAT8E4M3FN.dtype),
        op.Cast(present_value, to=FLOAT8E4M3FN.dtype),
    )
