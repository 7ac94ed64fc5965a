"""Places for adapters in a graph: what a LoRA adapter adds to a projection, chosen for each row while the model runs.

All adapters lie in one input, so that a graph has two inputs more and not two for each projection. Every projection
reads its own columns of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from qwonnx.export.errors import ExportError
from qwonnx.export.lowering.rewrite import call, own_nodes, required, sizes
from qwonnx.runtime.artifact.file_names import ADAPTER_SLOTS, ADAPTERS
from qwonnx.runtime.artifact.manifest import AdapterTarget, TensorSpec, slot_width

# The projections of a text model by the last part of their names, as peft's target_modules names them.
PROJECTIONS = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
# in_proj_b and in_proj_a have a number for each head, and few people train them.
_SMALL = ("in_proj_b", "in_proj_a")
ALL = "all"
_WEIGHT = ".weight"


def parse_projections(words: Sequence[str]) -> tuple[str, ...]:
    """The projections that are named, in the order of the model; "all" is all but the two smallest.

    Raises:
        ExportError: a name is not one of them.
    """
    for word in words:
        if word not in (*PROJECTIONS, ALL):
            known = ", ".join(PROJECTIONS)
            raise ExportError(
                f"{word!r} is no projection that takes adapters at run time: use {ALL}, or some of {known}"
            )
    return tuple(name for name in PROJECTIONS if name in words or (ALL in words and name not in _SMALL))


def add_adapter_slots(graph: ir.Graph, projections: Collection[str]) -> tuple[AdapterTarget, ...]:
    """Put AddAdapters behind every Linear whose module's name ends so, in place; return these modules in their order.

    Raises:
        ExportError: the model has none of them.
    """
    slots = ir.Value(name=ADAPTER_SLOTS, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch"]))
    adapters = ir.Value(name=ADAPTERS, type=ir.TensorType(ir.DataType.FLOAT))
    targets: list[AdapterTarget] = []
    for node in own_nodes(graph, "Linear"):
        x, weight = required(node.inputs)
        module = str(weight.name).removesuffix(_WEIGHT)
        if module.rpartition(".")[2] not in projections:
            continue
        num_outputs, num_inputs = sizes(weight)
        (y,) = node.outputs
        added = call("AddAdapters", [y, x, slots, adapters], {"offset": slot_width(targets)})
        (total,) = added.outputs
        total.name, total.shape, total.type = f"{y.name}.adapted", y.shape, y.type
        ir.convenience.replace_all_uses_with(y, total)
        added.replace_input_with(0, y)
        graph.insert_after(node, added)
        targets.append(AdapterTarget(module, num_inputs, num_outputs))
    if not targets:
        raise ExportError(f"the model has no projection {' or '.join(projections)} that adapters could change")
    adapters.shape = ir.Shape(["num_slots", slot_width(targets), "rank"])
    graph.inputs.extend([slots, adapters])
    return tuple(targets)


def adapter_inputs(targets: Sequence[AdapterTarget]) -> tuple[TensorSpec, ...]:
    """The inputs of a graph with these targets; none without any."""
    if not targets:
        return ()
    slots = TensorSpec(ADAPTER_SLOTS, "int64", ("batch",))
    return slots, TensorSpec(ADAPTERS, "float32", ("num_slots", slot_width(targets), "rank"))
