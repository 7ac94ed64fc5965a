"""The CUDA kernels that a release of onnxruntime-gpu has, and a check of a graph's nodes against them.

No GPU is needed: cuda_kernels.txt is the table of the kernels that the wheel registers (infra/gpu/kernel_table.py), and
types of a node's outputs follow from the schemas of ONNX Runtime's own package. A table knows domains, operators,
versions and types. What a kernel wants of shapes and attributes is in cuda_weights.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import onnx_ir as ir

TABLE = "cuda_kernels.txt"


@dataclass(frozen=True, slots=True)
class CudaKernel:
    """One kernel: the versions of its operator, and the types that it takes for each type parameter."""

    first_version: int
    last_version: int | None
    types: Mapping[str, frozenset[str]]

    def runs(self, version: int, types: Mapping[str, str]) -> bool:
        """Whether it runs an operator of this version with these types. A parameter that has no type is not checked."""
        if version < self.first_version or (self.last_version is not None and version > self.last_version):
            return False
        return all(types.get(name, next(iter(allowed))) in allowed for name, allowed in self.types.items())


@cache
def cuda_kernels() -> Mapping[tuple[str, str], Sequence[CudaKernel]]:
    """All kernels, by domain and operator."""
    kernels: dict[tuple[str, str], list[CudaKernel]] = {}
    for line in files("qwonnx.export.targets").joinpath(TABLE).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        domain, op_type, versions, *types = line.split()
        first, last = versions.split("-")
        named = (entry.split("=") for entry in types)
        kernel = CudaKernel(
            int(first), int(last) if last else None, {name: frozenset(kinds.split("|")) for name, kinds in named}
        )
        kernels.setdefault(("" if domain == "ai.onnx" else domain, op_type), []).append(kernel)
    return kernels


def without_kernel(model: ir.Model) -> list[str]:
    """The nodes that no CUDA kernel runs, a line each; empty if all have one.

    Args:
        model: whose inputs and initializers have types.
    """
    types = _given_types(model)
    return [line for node in model.graph for line in _check(node, model.opset_imports, types)]


def types_of(model: ir.Model) -> Mapping[str, str]:
    """The types of all values of a graph whose nodes have CUDA kernels, by their names."""
    types = _given_types(model)
    for node in model.graph:
        assert not list(_check(node, model.opset_imports, types)), f"{node.op_type} has no kernel"
    return {str(value.name): kind for value, kind in types.items()}


def _given_types(model: ir.Model) -> dict[ir.Value, str]:
    values = (*model.graph.inputs, *model.graph.initializers.values())
    return {value: _type_name(value.dtype) for value in values if value.dtype is not None}


def _check(node: ir.Node, opsets: Mapping[str, int], types: dict[ir.Value, str]) -> Iterator[str]:
    """Add the types of a node's outputs to `types`, and yield a line if the node has no kernel."""
    described = f"{node.domain or 'ai.onnx'}::{node.op_type} ({node.outputs[0].name})"
    if any(each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values()):
        yield f"{described} has a graph inside: a step with control flow cannot be captured"
        return
    schema = _schemas().get((node.domain, node.op_type), {})
    versions = [version for version in schema if version <= opsets.get(node.domain, 0)]
    if not versions:
        yield f"{described} is no operator of ONNX Runtime"
        return
    formal = schema[max(versions)]
    bound: dict[str, str] = {}
    for value, parameter in zip(node.inputs, _parameters(formal.inputs, len(node.inputs)), strict=True):
        if value is not None and value in types and bound.setdefault(parameter, types[value]) != types[value]:
            yield f"{described} has {parameter} as {bound[parameter]} and as {types[value]}"
            return
    for value, parameter in zip(node.outputs, _parameters(formal.outputs, len(node.outputs)), strict=True):
        kind = bound.get(parameter) or _type_of_output(node, parameter, formal)
        if kind is not None:
            types[value] = bound[parameter] = kind
    if (node.domain, node.op_type) == ("", "Constant"):
        return  # ONNX Runtime makes it an initializer
    kernels = cuda_kernels().get((node.domain, node.op_type), ())
    if not any(kernel.runs(formal.since_version, bound) for kernel in kernels):
        kinds = ", ".join(f"{parameter} {kind}" for parameter, kind in bound.items())
        yield f"{described} has no CUDA kernel for version {formal.since_version} with {kinds}"


def _parameters(formal: Sequence[Any], number: int) -> Iterator[str]:
    """The type parameter of each actual input or output; the last formal one may stand for several."""
    for index in range(number):
        yield formal[min(index, len(formal) - 1)].typeStr


def _type_of_output(node: ir.Node, parameter: str, schema: Any) -> str | None:
    """The type of an output whose parameter no input has: from an attribute, or the only one that the schema allows."""
    if parameter.startswith("tensor("):
        return _plain(parameter)
    if "to" in node.attributes:
        return _type_name(ir.DataType(node.attributes["to"].as_int()))
    if "value" in node.attributes:
        return _type_name(node.attributes["value"].as_tensor().dtype)
    for name, kind in _CONSTANTS.items():
        if name in node.attributes:
            return kind
    allowed: Sequence[str] = next(
        (each.allowed_type_strs for each in schema.type_constraints if each.type_param_str == parameter), ()
    )
    return _plain(allowed[0]) if len(allowed) == 1 else None


_CONSTANTS = {"value_int": "int64", "value_ints": "int64", "value_float": "float", "value_floats": "float"}


@cache
def _schemas() -> Mapping[tuple[str, str], Mapping[int, Any]]:
    """The schemas of ONNX Runtime, by domain and operator, and by version."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    schemas: dict[tuple[str, str], dict[int, Any]] = {}
    for schema in get_all_operator_schema():
        schemas.setdefault((schema.domain, schema.name), {})[schema.since_version] = schema
    return schemas


def _type_name(dtype: ir.DataType) -> str:
    """A type's name in the table: "float16", but "float" for float32."""
    return {"FLOAT": "float", "FLOAT8E4M3FN": "float8e4m3fn"}.get(dtype.name, dtype.name.lower())


def _plain(name: str) -> str:
    return name.removeprefix("tensor(").removesuffix(")")
