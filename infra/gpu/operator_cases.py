"""Cut the operators out of a CUDA artifact, each with inputs and with the outputs that the function bodies give.

The CUDA graph and the portable one, whose operators have bodies, come from one trace: a value that both have has one
name in both. So the nodes between such values are one case: an operator, or several for one, or one for several. The
bodies compute in float32 on inputs that float16 can hold. The twin of emulation.py computes the same nodes with
float16's roundings, and its error says how much is to be expected.

Cases are cut at steps of three kinds: a prompt, a chunk behind a past, and one token of several rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import helper

from infra.gpu.on_device.case import CASES_JSON, Array, OperatorCase, relative_error
from qwonnx.export.targets.cuda_kernels import types_of
from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.model.inputs import HOST_INPUTS

MAX_MODEL_LEN = 96
_TRANSPOSED = ("conv_state", "recurrent_state")  # CUDA's kernels have the last two axes in the other order


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the tokens that each row holds before it, and the new tokens of each."""

    name: str
    pasts: tuple[int, ...]
    num_tokens: int


STEPS = (Step("prompt", (0,), 40), Step("chunk", (40,), 33), Step("decode", (40, 17, 5, 29), 1))


def write_cases(out: Path, cuda: Artifact, portable: Artifact, twin: Artifact, steps: Sequence[Step] = STEPS) -> int:
    """Write cases.json, with the graphs and arrays of all cases, into a new folder. Returns their number.

    Args:
        out: the folder.
        cuda, portable, twin: artifacts of one checkpoint, with the same weights.
        steps: at which every operator is tried.
    """
    out.mkdir(parents=True)
    model, bodies, rounding = (onnx.load(each.file(each.decoder.file)) for each in (cuda, portable, twin))
    types = types_of(ir.load(cuda.file(cuda.decoder.file)))
    shared = _names(bodies) & {name for name in _names(model) if types[name] in ("float16", "float", "int8", "uint8")}
    parts = list(_parts(model, shared))
    states = {name: each for each in cuda.decoder.states for name in (each.past, each.present)}
    documents = []
    for step in steps:
        feeds = _feeds(portable, bodies, step, shared)
        for part in parts:
            given = {name: _stored(feeds[name], types[name], states.get(name)) for name in part.inputs}
            rounded = {name: _of_body(array, states.get(name)) for name, array in given.items()}
            expected = {
                name: _stored(array, "", states.get(name))
                for name, array in _run(bodies, part, feeds | rounded).items()
            }
            widened = {name: _widened(array) for name, array in given.items()}
            emulated = _run(rounding, part, feeds | widened)
            case = OperatorCase(
                name=f"{step.name}/{part.label}",
                graph=f"{part.label}.onnx",
                arrays=f"{part.label}.{step.name}.npz",
                inputs={name: str(array.dtype) for name, array in given.items()},
                outputs={name: {"float": "float32"}.get(types[name], types[name]) for name in part.outputs},
                in_place={states[name].past: name for name in part.outputs if name in states},
                on_host=tuple(name for name in part.inputs if name in HOST_INPUTS),
                emulated={name: relative_error(emulated[name], expected[name]) for name in part.outputs},
            )
            if not (out / case.graph).is_file():
                ranks = {name: array.ndim for name, array in (given | expected).items()}
                (out / case.graph).write_bytes(part.model(model, types, ranks).SerializeToString())
            arrays = {f"input:{name}": array for name, array in given.items()}
            arrays |= {f"expected:{name}": array for name, array in expected.items()}
            with (out / case.arrays).open("wb") as stream:
                save: Any = np.savez_compressed  # whose stub takes a name for its switch
                save(stream, **{name: _narrowed(array) for name, array in arrays.items()})
            documents.append(asdict(case))
    (out / CASES_JSON).write_text(json.dumps(documents, indent=1), encoding="utf-8")
    return len(documents)


@dataclass(frozen=True, slots=True)
class _Part:
    """Nodes of the CUDA graph between shared values."""

    label: str
    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def model(self, whole: onnx.ModelProto, types: Mapping[str, str], ranks: Mapping[str, int]) -> onnx.ModelProto:
        """The nodes as a model of any sizes, with their weights."""
        kinds = {name: onnx.TensorProto.DataType.Value(kind.upper()) for name, kind in types.items()}
        values = [
            [helper.make_tensor_value_info(name, kinds[name], [None] * ranks[name]) for name in names]
            for names in (self.inputs, self.outputs)
        ]
        return _model(whole, self.nodes, *values)


def _parts(model: onnx.ModelProto, shared: Set[str]) -> Iterator[_Part]:
    """The parts of a graph, one of each kind: those of equal operators with weights of equal shapes are left out."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    groups: list[list[onnx.NodeProto]] = []
    place: dict[str, int] = {}  # the group that makes a value which is not shared
    for node in model.graph.node:
        joined = sorted({place[name] for name in node.input if name in place})
        nodes = [each for index in joined for each in groups[index]] + [node]
        for index in joined:
            groups[index] = []
        groups.append(nodes)
        place |= {name: len(groups) - 1 for each in nodes for name in each.output if name and name not in shared}
    seen = set()
    for nodes in filter(None, groups):
        kind = tuple((node.op_type, *(weights[name] for name in node.input if name in weights)) for node in nodes)
        made = {name for node in nodes for name in node.output if name}
        if kind in seen or not made & shared:
            continue
        seen.add(kind)
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        main = dict.fromkeys(node.op_type for node in nodes if node.domain) or {nodes[-1].op_type: None}
        yield _Part(
            label=f"{len(seen):02}-{'-'.join(main)}",
            nodes=tuple(nodes),
            inputs=tuple(name for name in read if name not in weights and name not in made),
            outputs=tuple(sorted(made & shared)),
        )


def _run(model: onnx.ModelProto, part: _Part, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The part's outputs, computed by the nodes of another model that make them from the same inputs."""
    given = {value.name for value in model.graph.input} | set(part.inputs)
    wanted, nodes = set(part.outputs), []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            nodes.append(node)
            wanted |= set(filter(None, node.input)) - given
    nodes.reverse()
    read = sorted({name for node in nodes for name in node.input} & given)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(feeds[name].dtype), feeds[name].shape)
        for name in read
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in part.outputs]
    session = _session(_model(model, nodes, inputs, outputs))
    return dict(zip(part.outputs, session.run(list(part.outputs), {name: feeds[name] for name in read}), strict=True))


def _feeds(portable: Artifact, bodies: onnx.ModelProto, step: Step, shared: Set[str]) -> dict[str, Array]:
    """All inputs of a step, of either graph, and what the bodies make of them."""
    random = np.random.default_rng(7)
    specs = portable.decoder.states
    whole = onnx.ModelProto()
    whole.CopyFrom(bodies)
    known = {value.name for value in whole.graph.output}
    whole.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in sorted(shared - known))
    session, names = _session(whole), [value.name for value in whole.graph.output]
    vocabulary = portable.manifest.model.vocab_size
    rows = []
    for past in step.pasts:
        sizes = {"batch": 1, "max_model_len": MAX_MODEL_LEN}
        states = {
            spec.past: np.zeros([size if isinstance(size, int) else sizes[size] for size in spec.shape], spec.dtype)
            for spec in specs
        }
        if past:
            made = session.run(
                [spec.present for spec in specs],
                _inputs(portable, [0], random.integers(0, vocabulary, (1, past))) | states,
            )
            states = {spec.past: array for spec, array in zip(specs, made, strict=True)}
        rows.append(states)
    joined = {spec.past: np.concatenate([row[spec.past] for row in rows]) for spec in specs}
    token_ids = random.integers(0, vocabulary, (len(rows), step.num_tokens))
    feeds = _inputs(portable, step.pasts, token_ids) | joined
    made = dict(zip(names, session.run(names, feeds), strict=True))
    pasts = np.array(step.pasts, np.int32)
    return {
        **made,
        **feeds,
        "positions": feeds["position_ids"][0],
        "last_positions": pasts + (step.num_tokens - 1),
        "total_sequence_length": np.array(pasts.max() + step.num_tokens, np.int32),
    }


def _inputs(portable: Artifact, pasts: Sequence[int], token_ids: Array) -> dict[str, Array]:
    rows = np.array(pasts, np.int64)[:, None] + np.arange(token_ids.shape[1])
    feeds = {
        "input_ids": token_ids,
        "position_ids": np.ascontiguousarray(np.broadcast_to(rows, (3, *rows.shape))),
        "past_lengths": np.array(pasts, np.int64),
        "logit_positions": np.array([token_ids.shape[1] - 1]),
    }
    return {spec.name: feeds[spec.name] for spec in portable.decoder.inputs}


def _stored(array: Array, kind: str, state: StateSpec | None) -> Array:
    """A value of the bodies as CUDA's graph takes it: `kind` is its type there, "" any."""
    if state is not None and state.kind in _TRANSPOSED:
        array = array.swapaxes(-1, -2)
    if array.dtype.kind == "f":  # what float16 can hold, in either type
        array = array.astype(np.float16).astype(np.float16 if kind == "float16" else np.float32) if kind else array
    return np.ascontiguousarray(array)


def _of_body(array: Array, state: StateSpec | None) -> Array:
    if state is not None and state.kind in _TRANSPOSED:
        array = array.swapaxes(-1, -2)
    return np.ascontiguousarray(_widened(array))


def _widened(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _narrowed(array: Array) -> Array:
    """For the file: float16 holds the inputs, and is more exact than any bound."""
    return array.astype(np.float16) if array.dtype == np.float32 else array


def _names(model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.output if name}


def _model(
    whole: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A model of some of another's nodes, with their weights and functions."""
    read = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in whole.graph.initializer if tensor.name in read]
    graph = helper.make_graph(nodes, "case", inputs, outputs, weights)
    return helper.make_model(
        graph, functions=whole.functions, opset_imports=whole.opset_import, ir_version=whole.ir_version
    )


def _session(model: onnx.ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
