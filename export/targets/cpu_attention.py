"""Attention on the CPU: com.microsoft.GroupQueryAttention, and two cases that use it in another way.

The kernel writes a step's keys and values into the cache in place and attends to the filled part. It reads a key once
for every query head, and it computes slowly with quantised keys. So an If chooses for each step:

    one token over a float cache      the query heads that share keys become rows of one head, so that keys are read
                                      once for all of them (_folded)
    a chunk over a quantised cache    the filled part is converted to float32 once, instead of once for every query
                                      head and block of queries (_converted); not for several rows with a past
    other steps                       the kernel, unchanged (_plain)

The branches differ only in the order of sums. They write the cache in place as the kernel does: ONNX Runtime passes a
graph output's buffer to the branch that yields it, and the branch reads the same buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qwonnx.export.lowering.constants import integers
from qwonnx.export.lowering.rewrite import Attributes, attribute, call, own_nodes, replace, required, sizes
from qwonnx.export.operators.ops import DOMAIN
from qwonnx.export.targets.cpu_functions import MICROSOFT

# Operators of attention over a cache, and the kernel's attribute for the bits of a cached value: 0 is a float.
_CACHE_BITS = {"GatedAttention": 0, "GatedAttentionInt8": 8, "GatedAttentionInt4": 4}

# From so many positions, folding saves more than its dozen small nodes cost.
_LEAST_POSITIONS_TO_FOLD = 256
# From so many tokens, converting the cache costs less than the kernel loses on it. At most so many values of keys are
# converted: 256 MiB in float32, and three times that with the values and temporary tensors.
_LEAST_TOKENS_TO_CONVERT = 8
_MOST_VALUES_TO_CONVERT = 1 << 26


@dataclass(frozen=True, slots=True)
class _Step:
    """Facts of a step for the attention of all layers, computed once in a graph."""

    last_positions: ir.Value  # int32 [B]: the place of each row's last token in the cache
    row_tokens: ir.Value  # int32 [B]: tokens of each row in this step, all the same number
    longest: ir.Value  # int32 []: tokens of the longest row, after this step
    is_special: ir.Value  # bool [1]: one of the two cases


@dataclass(frozen=True, slots=True)
class _Attention:
    """The parts of an attention node."""

    query: ir.Value  # [B, T, num_heads * head_dim]
    key: ir.Value  # [B, T, num_kv_heads * head_dim]
    value: ir.Value
    past_key: ir.Value
    past_value: ir.Value
    past_lengths: ir.Value
    scales: Sequence[ir.Value]  # of keys and of values; empty for a float cache
    bits: int  # of a cached value; 0 for a float
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads that share one head of keys."""
        return self.num_heads // self.num_kv_heads

    @property
    def heads(self) -> Attributes:
        return {"num_heads": self.num_heads, "kv_num_heads": self.num_kv_heads}


class _Branch:
    """Builds a branch of an If. Its values have unique names, so that they do not hide values of the graph."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[ir.Node] = []

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Attributes | None = None,
        *,
        domain: str = "",
        num_outputs: int = 1,
    ) -> list[ir.Value]:
        """Add a node, and return its outputs."""
        node = call(op_type, inputs, attributes, domain=domain, num_outputs=num_outputs)
        for index, output in enumerate(node.outputs):
            output.name = f"{self._name}.{len(self._nodes)}.{index}"
        self._nodes.append(node)
        return list(node.outputs)

    def own(self, op_type: str, *inputs: ir.Value) -> ir.Value:
        """Add a call of one of our functions."""
        return self.add(op_type, inputs, domain=DOMAIN)[0]

    def graph(self, outputs: Sequence[ir.Value], attention: _Attention) -> ir.Graph:
        """The branch; its outputs are the attention [B, T, num_heads * head_dim] and both buffers."""
        for output, like in zip(outputs, (attention.query, attention.past_key, attention.past_value), strict=True):
            output.type = like.type
        return ir.Graph([], outputs, nodes=self._nodes, name=self._name)


def lower_attention(graph: ir.Graph) -> None:
    """Replace every attention node of a graph whose inputs include input_ids and past_lengths."""
    nodes = [node for op_type in _CACHE_BITS for node in own_nodes(graph, op_type)]
    if not nodes:
        return
    step = _add_step(graph, _taken_apart(nodes[0]))
    for node in nodes:
        attention = _taken_apart(node)
        name = f"{attention.past_key.name}.attention"
        if attention.bits or attention.group > 1:
            special = _converted if attention.bits else _folded
            branches = {
                "then_branch": special(graph, attention, step, f"{name}.special"),
                "else_branch": _plain(attention, step, f"{name}.plain"),
            }
            attended = call("If", [step.is_special], branches, domain="", num_outputs=3)
        else:
            attended = call("GroupQueryAttention", *_kernel(attention, step), domain=MICROSOFT, num_outputs=3)
        opening = call("Sigmoid", [required(node.inputs)[3]], domain="")
        gated = call("Mul", [attended.outputs[0], opening.outputs[0]], domain="")
        replace(node, [attended, opening, gated], [gated.outputs[0], *attended.outputs[1:]])


def _taken_apart(node: ir.Node) -> _Attention:
    query, key, value, _, past_key, past_value, past_lengths, *scales = required(node.inputs)
    num_heads, num_kv_heads = int(attribute(node, "num_heads")), sizes(past_key)[1]
    return _Attention(
        query=query,
        key=key,
        value=value,
        past_key=past_key,
        past_value=past_value,
        past_lengths=past_lengths,
        scales=scales,
        bits=_CACHE_BITS[node.op_type],
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=sizes(query)[2] // num_heads,
    )


def _add_step(graph: ir.Graph, attention: _Attention) -> _Step:
    """Add the nodes of _Step. All layers have the same tokens, and the heads of `attention`."""
    past_lengths = next(value for value in graph.inputs if value.name == "past_lengths")
    input_ids = next(value for value in graph.inputs if value.name == "input_ids")
    nodes: list[ir.Node] = []

    def add(op_type: str, *inputs: ir.Value, attributes: Attributes | None = None) -> ir.Value:
        nodes.append(call(op_type, inputs, attributes, domain=""))
        return nodes[-1].outputs[0]

    def int32(value: ir.Value) -> ir.Value:
        return add("Cast", value, attributes={"to": ir.DataType.INT32.value})

    def number(value: int) -> ir.Value:
        return integers(graph, [value])

    num_rows = add("Shape", past_lengths)
    num_tokens = add("Shape", input_ids, attributes={"start": 1, "end": 2})
    lengths = add("Add", past_lengths, num_tokens)
    longest = add("ReduceMax", lengths, attributes={"keepdims": 0})
    if attention.bits:
        most = _MOST_VALUES_TO_CONVERT // (attention.num_kv_heads * attention.head_dim)
        tokens = add("GreaterOrEqual", num_tokens, number(_LEAST_TOKENS_TO_CONVERT))
        positions = add("LessOrEqual", longest, number(most))
        # Without new keys the kernel takes several rows only if none has a past.
        rows = add("Or", add("Equal", num_rows, number(1)), add("Equal", longest, num_tokens))
        is_special = add("And", add("And", tokens, positions), rows)
    else:
        # The kernel refuses more rows than positions, and takes rows of only one sequence.
        tokens = add("Equal", add("Size", input_ids), number(1))
        positions = add("GreaterOrEqual", longest, number(max(_LEAST_POSITIONS_TO_FOLD, attention.group)))
        is_special = add("And", tokens, positions)
    step = _Step(
        last_positions=int32(add("Sub", lengths, number(1))),
        row_tokens=add("Expand", int32(num_tokens), num_rows),
        longest=int32(longest),
        is_special=is_special,
    )
    graph.insert_before(graph[0], nodes)
    return step


def _kernel(attention: _Attention, step: _Step) -> tuple[list[ir.Value | None], Attributes]:
    """Inputs and attributes of the kernel that appends to the cache and attends."""
    inputs: list[ir.Value | None] = [attention.query, attention.key, attention.value]
    inputs += [attention.past_key, attention.past_value, step.last_positions, step.longest]
    # Rotary caches and ids, bias, sink, scales of a float cache and norms are not given. The last input is: without it
    # the kernel refuses chunks of several rows that have a past.
    scales: Sequence[ir.Value | None] = attention.scales or [None] * 2
    inputs += [*[None] * 5, *scales, *[None] * 2, step.row_tokens]
    if not attention.bits:
        return inputs, attention.heads
    kind = "PER_CHANNEL"
    return inputs, {
        **attention.heads,
        "k_quant_type": kind,
        "v_quant_type": kind,
        "kv_cache_bit_width": attention.bits,
    }


def _plain(attention: _Attention, step: _Step, name: str) -> ir.Graph:
    branch = _Branch(name)
    outputs = branch.add("GroupQueryAttention", *_kernel(attention, step), domain=MICROSOFT, num_outputs=3)
    return branch.graph(outputs, attention)


def _attend(
    branch: _Branch,
    graph: ir.Graph,
    attention: _Attention,
    step: _Step,
    query: ir.Value,
    keys: ir.Value,
    values: ir.Value,
    attributes: Attributes,
) -> ir.Value:
    """The kernel over keys and values that are already in their buffers: it gets no new ones, and writes none."""
    zero, one = integers(graph, [0]), integers(graph, [1])
    (nothing,) = branch.add("Slice", [attention.key, zero, zero, one])
    inputs = [query, nothing, nothing, keys, values, step.last_positions, step.longest]
    return branch.add("GroupQueryAttention", inputs, attributes, domain=MICROSOFT)[0]


def _folded(graph: ir.Graph, attention: _Attention, step: _Step, name: str) -> ir.Graph:
    """One token of one sequence: the heads of a group become rows, and each row sees all positions."""
    kv_heads, width = attention.num_kv_heads, attention.head_dim
    branch = _Branch(name)
    by_head = integers(graph, [0, kv_heads, -1, width])
    (place,) = branch.add("Unsqueeze", [attention.past_lengths, integers(graph, [1, 2, 3])])
    (places,) = branch.add("Expand", [place, integers(graph, [1, kv_heads, 1, width])])
    present = []
    for new, past in ((attention.key, attention.past_key), (attention.value, attention.past_value)):
        (heads,) = branch.add("Reshape", [new, by_head])  # [1, num_kv_heads, 1, head_dim]
        present += branch.add("ScatterElements", [past, places, heads], {"axis": 2})
    swap = {"perm": [0, 2, 1, 3]}
    (grouped,) = branch.add("Reshape", [attention.query, integers(graph, [0, kv_heads, attention.group, width])])
    (rows,) = branch.add("Transpose", [grouped], swap)
    (folded,) = branch.add("Reshape", [rows, integers(graph, [0, 0, -1])])  # [1, group, num_kv_heads * head_dim]
    one_to_one: Attributes = {"num_heads": kv_heads, "kv_num_heads": kv_heads, "causal": 0}
    attended = _attend(branch, graph, attention, step, folded, present[0], present[1], one_to_one)
    (rows,) = branch.add("Reshape", [attended, integers(graph, [0, 0, kv_heads, width])])
    (grouped,) = branch.add("Transpose", [rows], swap)
    (unfolded,) = branch.add("Reshape", [grouped, integers(graph, [0, 1, -1])])
    return branch.graph([unfolded, *present], attention)


def _converted(graph: ir.Graph, attention: _Attention, step: _Step, name: str) -> ir.Graph:
    """The operator's function body, with the float kernel instead of its arithmetic."""
    branch = _Branch(name)
    positions = branch.own("NewPositions", attention.query, attention.past_lengths)
    present, floats = [], []
    for new, past, scale in zip(
        (attention.key, attention.value), (attention.past_key, attention.past_value), attention.scales, strict=True
    ):
        codes = branch.own(f"ToInt{attention.bits}", branch.own("HeadsLike", new, past), scale)
        present.append(branch.own("AppendToCache", past, codes, positions))
        filled = branch.own("Filled", present[-1], positions)
        floats.append(branch.own(f"FromInt{attention.bits}", filled, scale))
    attended = _attend(branch, graph, attention, step, attention.query, floats[0], floats[1], attention.heads)
    return branch.graph([attended, *present], attention)
