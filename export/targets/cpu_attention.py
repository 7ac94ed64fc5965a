"""Attention on the CPU where native kernels do not run: a body of com.microsoft.GroupQueryAttention.

The graph names GatedAttention, GatedAttentionInt8 or GatedAttentionInt4, which native kernels run. The functions of
these names call ONNX Runtime's kernel. It writes a step's keys and values into the cache in place and attends to the
filled part. It reads a key once for every query head, and it computes slowly with quantised keys. So an If chooses for
each step:

    one token over a float cache      the query heads that share keys become rows of one head, so that keys are read
                                      once for all of them (_folded)
    a chunk over a quantised cache    the filled part is converted to float32 once, instead of once for every query
                                      head and block of queries (_converted); not for several rows with a past
    other steps                       the kernel, unchanged (_plain)

The branches differ only in the order of sums. They write the cache in place as the kernel does: ONNX Runtime passes a
graph output's buffer to the branch that yields it, and the branch reads the same buffer.

Facts of a step are the same for all layers. Each layer's body computes them from past_lengths and input_ids, an input
that the operator has for this alone: so the bodies' nodes are equal, and ONNX Runtime keeps those of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qwonnx.export.lowering.rewrite import Attributes, attribute, call, own_nodes, replace, required, sizes
from qwonnx.export.operators.ops import DOMAIN
from qwonnx.export.targets.contributed import MICROSOFT
from qwonnx.export.targets.cpu_functions import CACHE_BITS
from qwonnx.export.targets.function_body import FunctionBody

# From so many positions, folding saves more than its dozen small nodes cost.
_LEAST_POSITIONS_TO_FOLD = 256
# From so many tokens, converting the cache costs less than the kernel loses on it. At most so many values of keys are
# converted: 256 MiB in float32, and three times that with the values and temporary tensors.
_LEAST_TOKENS_TO_CONVERT = 8
_MOST_VALUES_TO_CONVERT = 1 << 26


@dataclass(frozen=True, slots=True)
class _Heads:
    """What all attention nodes of a model have in common."""

    op_type: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    types: tuple[ir.TypeProtocol | None, ...]  # of the outputs

    @property
    def bits(self) -> int:
        """Of a cached value; 0 for a float."""
        return CACHE_BITS[self.op_type]

    @property
    def group(self) -> int:
        """Query heads that share one head of keys."""
        return self.num_heads // self.num_kv_heads

    @property
    def attributes(self) -> Attributes:
        return {"num_heads": self.num_heads, "kv_num_heads": self.num_kv_heads}


@dataclass(frozen=True, slots=True)
class _Step:
    """Facts of a step."""

    last_positions: ir.Value  # int32 [B]: the place of each row's last token in the cache
    row_tokens: ir.Value  # int32 [B]: tokens of each row in this step, all the same number
    longest: ir.Value  # int32 []: tokens of the longest row, after this step
    is_special: ir.Value  # bool [1]: one of the two cases


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Inputs of the function, by the names of the operator's body."""

    query: ir.Value  # [B, T, num_heads * head_dim]
    key: ir.Value  # [B, T, num_kv_heads * head_dim]
    value: ir.Value
    gate: ir.Value
    past_key: ir.Value
    past_value: ir.Value
    past_lengths: ir.Value
    scales: Sequence[ir.Value]  # of keys and of values; empty for a float cache
    input_ids: ir.Value  # [B, T]


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

    def integers(self, *values: int) -> ir.Value:
        """An int64 vector. One that both the function and a branch used would not be shared by the layers."""
        return self.add("Constant", [], {"value_ints": values})[0]

    def graph(self, outputs: Sequence[ir.Value], heads: _Heads) -> ir.Graph:
        """The branch; its outputs are the attention [B, T, num_heads * head_dim] and both buffers."""
        for output, kind in zip(outputs, heads.types, strict=True):
            output.type = kind
        return ir.Graph([], outputs, nodes=self._nodes, name=self._name)


def lower_attention(model: ir.Model) -> None:
    """Give every attention node of a graph with the input input_ids that input, and the model their function."""
    graph = model.graph
    nodes = [node for op_type in CACHE_BITS for node in own_nodes(graph, op_type)]
    if not nodes:
        return
    heads = {_heads(node) for node in nodes}
    assert len(heads) == 1, "one function serves all layers"
    input_ids = next(value for value in graph.inputs if value.name == "input_ids")
    for node in nodes:
        attributes = {"num_heads": attribute(node, "num_heads")}
        replace(node, [call(node.op_type, [*required(node.inputs), input_ids], attributes, num_outputs=3)])
    function = _function(heads.pop())
    model.functions[function.identifier()] = function


def _heads(node: ir.Node) -> _Heads:
    query, past_key = required(node.inputs)[0], required(node.inputs)[4]
    num_heads = int(attribute(node, "num_heads"))
    types = (query.type, past_key.type, past_key.type)
    return _Heads(node.op_type, num_heads, sizes(past_key)[1], sizes(query)[2] // num_heads, types)


def _function(heads: _Heads) -> ir.Function:
    """The operator's function. Its node has the attribute num_heads, but all sizes are constants here."""
    scales = ("key_scale", "value_scale") if heads.bits else ()
    names = ["query", "key", "value", "gate", "past_key", "past_value", "past_lengths", *scales, "input_ids"]
    body = FunctionBody(heads.op_type, names, {"num_heads": ir.AttributeType.INT})
    named = dict(zip(names, body.inputs, strict=True))
    inputs = _Inputs(scales=[named.pop(name) for name in scales], **named)
    step = _add_step(body, inputs, heads)
    if heads.bits or heads.group > 1:
        special = _converted if heads.bits else _folded
        branches = {
            "then_branch": special(inputs, heads, step),
            "else_branch": _plain(inputs, heads, step),
        }
        attended, *present = body.add("If", [step.is_special], branches, domain="", num_outputs=3)
    else:
        attended, *present = body.add("GroupQueryAttention", *_kernel(inputs, heads, step), num_outputs=3)
    (opening,) = body.add("Sigmoid", [inputs.gate], domain="")
    (gated,) = body.add("Mul", [attended, opening], domain="")
    return body.function([gated, *present])


def _add_step(body: FunctionBody, inputs: _Inputs, heads: _Heads) -> _Step:
    def add(op_type: str, *values: ir.Value, attributes: Attributes | None = None) -> ir.Value:
        return body.add(op_type, values, attributes, domain="")[0]

    def int32(value: ir.Value) -> ir.Value:
        return add("Cast", value, attributes={"to": ir.DataType.INT32.value})

    num_rows = add("Shape", inputs.past_lengths)
    num_tokens = add("Shape", inputs.input_ids, attributes={"start": 1, "end": 2})
    lengths = add("Add", inputs.past_lengths, num_tokens)
    longest = add("ReduceMax", lengths, attributes={"keepdims": 0})
    if heads.bits:
        most = _MOST_VALUES_TO_CONVERT // (heads.num_kv_heads * heads.head_dim)
        tokens = add("GreaterOrEqual", num_tokens, body.integers(_LEAST_TOKENS_TO_CONVERT))
        positions = add("LessOrEqual", longest, body.integers(most))
        # Without new keys the kernel takes several rows only if none has a past.
        rows = add("Or", add("Equal", num_rows, body.integers(1)), add("Equal", longest, num_tokens))
        is_special = add("And", add("And", tokens, positions), rows)
    else:
        # The kernel refuses more rows than positions, and takes rows of only one sequence.
        tokens = add("Equal", add("Size", inputs.input_ids), body.integers(1))
        least = max(_LEAST_POSITIONS_TO_FOLD, heads.group)
        positions = add("GreaterOrEqual", longest, body.integers(least))
        is_special = add("And", tokens, positions)
    return _Step(
        last_positions=int32(add("Sub", lengths, body.integers(1))),
        row_tokens=add("Expand", int32(num_tokens), num_rows),
        longest=int32(longest),
        is_special=is_special,
    )


def _kernel(inputs: _Inputs, heads: _Heads, step: _Step) -> tuple[list[ir.Value | None], Attributes]:
    """Inputs and attributes of the kernel that appends to the cache and attends."""
    values: list[ir.Value | None] = [inputs.query, inputs.key, inputs.value]
    values += [inputs.past_key, inputs.past_value, step.last_positions, step.longest]
    # Rotary caches and ids, bias, sink, scales of a float cache and norms are not given. The last input is: without it
    # the kernel refuses chunks of several rows that have a past.
    scales: Sequence[ir.Value | None] = inputs.scales or [None] * 2
    values += [*[None] * 5, *scales, *[None] * 2, step.row_tokens]
    if not heads.bits:
        return values, heads.attributes
    kind = "PER_CHANNEL"
    return values, {
        **heads.attributes,
        "k_quant_type": kind,
        "v_quant_type": kind,
        "kv_cache_bit_width": heads.bits,
    }


def _plain(inputs: _Inputs, heads: _Heads, step: _Step) -> ir.Graph:
    branch = _Branch("plain")
    outputs = branch.add("GroupQueryAttention", *_kernel(inputs, heads, step), domain=MICROSOFT, num_outputs=3)
    return branch.graph(outputs, heads)


def _attend(
    branch: _Branch,
    inputs: _Inputs,
    step: _Step,
    query: ir.Value,
    keys: ir.Value,
    values: ir.Value,
    attributes: Attributes,
) -> ir.Value:
    """The kernel over keys and values that are already in their buffers: it gets no new ones, and writes none."""
    zero, one = branch.integers(0), branch.integers(1)
    (nothing,) = branch.add("Slice", [inputs.key, zero, zero, one])
    given = [query, nothing, nothing, keys, values, step.last_positions, step.longest]
    return branch.add("GroupQueryAttention", given, attributes, domain=MICROSOFT)[0]


def _folded(inputs: _Inputs, heads: _Heads, step: _Step) -> ir.Graph:
    """One token of one sequence: the heads of a group become rows, and each row sees all positions."""
    kv_heads, width = heads.num_kv_heads, heads.head_dim
    branch = _Branch("folded")
    by_head = branch.integers(0, kv_heads, -1, width)
    (place,) = branch.add("Unsqueeze", [inputs.past_lengths, branch.integers(1, 2, 3)])
    (places,) = branch.add("Expand", [place, branch.integers(1, kv_heads, 1, width)])
    present = []
    for new, past in ((inputs.key, inputs.past_key), (inputs.value, inputs.past_value)):
        (new_heads,) = branch.add("Reshape", [new, by_head])  # [1, num_kv_heads, 1, head_dim]
        present += branch.add("ScatterElements", [past, places, new_heads], {"axis": 2})
    swap = {"perm": [0, 2, 1, 3]}
    (grouped,) = branch.add("Reshape", [inputs.query, branch.integers(0, kv_heads, heads.group, width)])
    (rows,) = branch.add("Transpose", [grouped], swap)
    (folded,) = branch.add("Reshape", [rows, branch.integers(0, 0, -1)])  # [1, group, num_kv_heads * head_dim]
    one_to_one: Attributes = {"num_heads": kv_heads, "kv_num_heads": kv_heads, "causal": 0}
    attended = _attend(branch, inputs, step, folded, present[0], present[1], one_to_one)
    (rows,) = branch.add("Reshape", [attended, branch.integers(0, 0, kv_heads, width)])
    (grouped,) = branch.add("Transpose", [rows], swap)
    (unfolded,) = branch.add("Reshape", [grouped, branch.integers(0, 1, -1)])
    return branch.graph([unfolded, *present], heads)


def _converted(inputs: _Inputs, heads: _Heads, step: _Step) -> ir.Graph:
    """The operator's function body, with the float kernel instead of its arithmetic."""
    branch = _Branch("converted")
    positions = branch.own("NewPositions", inputs.query, inputs.past_lengths)
    present, floats = [], []
    for new, past, scale in zip(
        (inputs.key, inputs.value), (inputs.past_key, inputs.past_value), inputs.scales, strict=True
    ):
        codes = branch.own(f"ToInt{heads.bits}", branch.own("HeadsLike", new, past), scale)
        present.append(branch.own("AppendToCache", past, codes, positions))
        filled = branch.own("Filled", present[-1], positions)
        floats.append(branch.own(f"FromInt{heads.bits}", filled, scale))
    attended = _attend(branch, inputs, step, inputs.query, floats[0], floats[1], heads.attributes)
    return branch.graph([attended, *present], heads)
