"""The shapes of a graph's inputs over all steps of an engine, as TensorRT's optimisation profile.

TensorRT chooses its kernels when it builds an engine, for the usual shape of each input, and takes shapes between the
least and the largest one. The usual step decodes one sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qwonnx.runtime.artifact.compiled import StepLimits
from qwonnx.runtime.artifact.manifest import GraphSpec
from qwonnx.runtime.errors import SessionError


@dataclass(frozen=True, slots=True)
class ShapeProfile:
    """The least, usual and largest shapes, as ONNX Runtime takes them: "input_ids:1x1,past_lengths:1"."""

    least: str
    usual: str
    largest: str


def shape_profile(graph: GraphSpec, limits: StepLimits) -> ShapeProfile:
    """The profile of a graph's inputs and states. A number that decides shapes has values in the place of sizes.

    Args:
        graph: from the manifest.
        limits: the largest steps.

    Raises:
        SessionError: an axis is not one of a decoder's.
    """
    lengths = limits.max_model_len
    ones = {"batch": 1, "sequence": 1, "num_logits": 1}
    least = ones | {"max_model_len": min(2, lengths), "number": 1}
    usual = ones | {"max_model_len": lengths, "number": lengths}
    largest = {
        "batch": limits.max_num_seqs,
        "sequence": limits.max_num_batched_tokens,
        "num_logits": 1,
        "max_model_len": lengths,
        "number": lengths,
    }
    shapes = {spec.name: spec.shape for spec in graph.inputs} | {state.past: state.shape for state in graph.states}
    return ShapeProfile(*(_text(shapes, sizes) for sizes in (least, usual, largest)))


def _text(shapes: Mapping[str, Sequence[int | str]], sizes: Mapping[str, int]) -> str:
    parts = {name: [_size(axis, sizes) for axis in shape] or [sizes["number"]] for name, shape in shapes.items()}
    return ",".join(f"{name}:{'x'.join(map(str, values))}" for name, values in parts.items())


def _size(axis: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    if axis not in sizes:
        raise SessionError(f"the graph has an axis {axis}, whose sizes are not known: export the checkpoint again")
    return sizes[axis]
