"""One operator of attention alone in a graph, with the library or by its function body, and random steps for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import FunctionProto, TensorProto, helper

from qwonnx.runtime.cache.host_buffers import HostBinding
from qwonnx.runtime.native.library import DOMAIN, NativeLibrary

Arrays = dict[str, NDArray[Any]]

KINDS = ("float32", "int8", "int4")
OPERATORS = {"float32": "GatedAttention", "int8": "GatedAttentionInt8", "int4": "GatedAttentionInt4"}
CACHES = ("past_key", "past_value")
OUTPUTS = ("attended", "present_key", "present_value")
DTYPES: dict[str, Any] = {"float32": np.float32, "int8": np.int8, "int4": np.uint8}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one step."""

    lengths: Sequence[int]  # of the rows before the step
    num_tokens: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    spare: int = 3  # positions behind the longest row

    @property
    def capacity(self) -> int:
        return max(self.lengths, default=0) + self.num_tokens + self.spare


def input_names(kv: str) -> list[str]:
    scales = [] if kv == "float32" else ["key_scale", "value_scale"]
    return ["query", "key", "value", "gate", *CACHES, "past_lengths", *scales]


def random_step(kv: str, shape: Shape, seed: int = 0) -> Arrays:
    """Inputs of the operator; caches are full of numbers, behind the rows' lengths too."""
    random = np.random.default_rng(seed)
    batch = len(shape.lengths)

    def normal(*sizes: int) -> NDArray[Any]:
        return random.standard_normal(sizes, np.float32)

    def cache() -> NDArray[Any]:
        rows = (batch, shape.num_kv_heads, shape.capacity)
        if kv == "float32":
            return normal(*rows, shape.head_dim)
        stored = shape.head_dim if kv == "int8" else shape.head_dim // 2
        return random.integers(0, 256, (*rows, stored), np.uint8).view(DTYPES[kv])

    def scale() -> NDArray[Any]:
        channels = random.uniform(0.5, 3.0, (1, shape.num_kv_heads, 1, shape.head_dim))
        return (channels / (127 if kv == "int8" else 7)).astype(np.float32)

    arrays: Arrays = {
        "query": normal(batch, shape.num_tokens, shape.num_heads * shape.head_dim),
        "key": normal(batch, shape.num_tokens, shape.num_kv_heads * shape.head_dim),
        "value": normal(batch, shape.num_tokens, shape.num_kv_heads * shape.head_dim),
        "gate": 3 * normal(batch, shape.num_tokens, shape.num_heads * shape.head_dim),
        "past_key": cache(),
        "past_value": cache(),
        "past_lengths": np.array(shape.lengths, np.int64),
    }
    return arrays if kv == "float32" else arrays | {"key_scale": scale(), "value_scale": scale()}


def bodies(kv: str) -> list[FunctionProto]:
    """The function body of the operator, and of those that it calls."""
    from qwonnx.export.operators import attention_bodies

    names = ["NewPositions", "HeadsLike", "AppendToCache", "Filled", "AttendGated", OPERATORS[kv]]
    names += {"float32": [], "int8": ["ToInt8", "FromInt8"], "int4": ["ToInt4", "FromInt4"]}[kv]
    return [getattr(attention_bodies, name).to_function_proto() for name in names]


def attention_model(kv: str, num_heads: int, functions: Sequence[FunctionProto] = ()) -> onnx.ModelProto:
    """A graph with inputs of any shape."""
    cache = helper.np_dtype_to_tensor_dtype(np.dtype(DTYPES[kv]))
    special = {**dict.fromkeys(CACHES, cache), "past_lengths": TensorProto.INT64}
    names = input_names(kv)
    node = helper.make_node(OPERATORS[kv], names, OUTPUTS, domain=DOMAIN, num_heads=num_heads)
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info(name, special.get(name, TensorProto.FLOAT), None) for name in names],
        [
            helper.make_tensor_value_info(name, kind, None)
            for name, kind in zip(OUTPUTS, (TensorProto.FLOAT, cache, cache), strict=True)
        ],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
    return model


def attention_session(
    kv: str, num_heads: int, library: NativeLibrary | None, threads: int = 2
) -> onnxruntime.InferenceSession:
    """A session of that graph. Without a library the operator is its function body."""
    return session_of(attention_model(kv, num_heads, [] if library else bodies(kv)), library, threads)


def session_of(model: onnx.ModelProto, library: NativeLibrary | None, threads: int) -> onnxruntime.InferenceSession:
    """A session whose threads sleep between runs, without the messages of errors that are raised."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if library:
        library.register(options)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def bind_in_place(session: onnxruntime.InferenceSession, arrays: Arrays, attended: NDArray[Any]) -> Any:
    """A binding of a step, whose arrays the caller keeps alive; the caches are written, as the engine's buffers are."""
    io = session.io_binding()
    binding = HostBinding(io)
    for value in session.get_inputs():
        binding.bind_input(value.name, arrays[value.name])
    for name, array in zip(OUTPUTS, (attended, *(arrays[name] for name in CACHES)), strict=True):
        binding.bind_output(name, array)
    return io


def run_in_place(session: onnxruntime.InferenceSession, arrays: Arrays) -> NDArray[Any]:
    """The attention of one step, in place."""
    attended = np.full_like(arrays["query"], np.nan)
    session.run_with_iobinding(bind_in_place(session, arrays, attended))
    return attended
