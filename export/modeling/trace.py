"""Modules on fake tensors -> one ONNX graph with our own operators.

No weights are read or allocated: parameters are fake, and the graph's initializers have only names, shapes and dtypes.
graph_weights.py and weight_stage.py add the values after the lowering, so the 397B model traces on a laptop.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TypeVar

import onnx_ir as ir
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.modeling.cache_spec import stage_states, state_specs
from qwonnx.export.modeling.decoder import Decoder
from qwonnx.export.modeling.decoder_stage import DecoderStage, decoder_stage
from qwonnx.export.modeling.rotary import RotaryAngles
from qwonnx.export.modeling.stage_cut import StageCut
from qwonnx.export.operators.op_bodies import OPSET
from qwonnx.export.operators.ops import DOMAIN, VERSION
from qwonnx.runtime.artifact.file_names import HIDDEN_STATES, NEXT_HIDDEN_STATES
from qwonnx.runtime.artifact.manifest import StateSpec, TensorSpec

# Sizes of the symbolic dimensions while tracing: all different, and not 0 or 1, which torch.export would specialise.
_EXAMPLE_SIZES = {"batch": 2, "sequence": 5, "num_logits": 3, "max_model_len": 17}
_SYMBOL = re.compile(r"\bs\d+\b")  # as torch names a variable axis
_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_USERS_CACHE = os.environ.get(_CACHE_VARIABLE)  # torch sets it, too, when it first looks


def decoder_inputs(config: ModelConfig, cut: StageCut | None = None) -> tuple[TensorSpec, ...]:
    """The decoder's inputs other than the states, or a stage's; their modules describe them."""
    inputs: tuple[TensorSpec, ...] = (
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("position_ids", "int64", (3, "batch", "sequence")),
        TensorSpec("past_lengths", "int64", ("batch",)),
    )
    if cut is None or cut.is_last:
        inputs += (TensorSpec("logit_positions", "int64", ("num_logits",)),)
    return inputs if cut is None or cut.is_first else (*inputs, _hidden_states(HIDDEN_STATES, config))


def decoder_outputs(config: ModelConfig, cut: StageCut | None = None) -> tuple[TensorSpec, ...]:
    """The decoder's outputs other than the states, or a stage's."""
    if cut is not None and not cut.is_last:
        return (_hidden_states(NEXT_HIDDEN_STATES, config),)
    return (TensorSpec("logits", "float32", ("batch", "num_logits", config.vocab_size)),)


def _hidden_states(name: str, config: ModelConfig) -> TensorSpec:
    return TensorSpec(name, "float32", ("batch", "sequence", config.hidden_size))


def decoder_weights(config: ModelConfig, cut: StageCut | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that a trace will have, in the order of the modules.

    This uses the meta device, which is quick: fake tensors take seconds to import.
    """
    rotary_angles = RotaryAngles(config)
    with torch.device("meta"):
        decoder = _modules(config, rotary_angles, cut)
    return {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}


def _modules(config: ModelConfig, rotary_angles: RotaryAngles, cut: StageCut | None) -> Decoder | DecoderStage:
    return Decoder(config, rotary_angles) if cut is None else decoder_stage(config, rotary_angles, cut)


@contextmanager
def _private_cache() -> Iterator[None]:
    """Give torch's compiler, which looks for orders in a folder that is shared, a private one that does not stay."""
    if _USERS_CACHE is not None:
        yield
        return
    with TemporaryDirectory(prefix="qwonnx-trace-") as folder:
        os.environ[_CACHE_VARIABLE] = folder
        try:
            yield
        finally:
            os.environ.pop(_CACHE_VARIABLE, None)


@_private_cache()
def trace_decoder(config: ModelConfig, cut: StageCut | None = None) -> ir.Model:
    """Trace the text model, or one stage of it.

    Returns:
        A model whose initializers have names (as in `modeling/`), shapes and dtypes, and no values, except for the few
        small constants that are computed from the configuration.
    """
    inputs, states = decoder_inputs(config, cut), stage_states(state_specs(config), cut)
    rotary_angles = RotaryAngles(config)  # the one module with real values: its frequencies are part of the graph
    with FakeTensorMode(allow_non_fake_inputs=True):
        decoder = _modules(config, rotary_angles, cut).eval()
        examples = [_example(spec) for spec in inputs]
        past = [_example(state) for state in states]
    dimensions = {name: torch.export.Dim(name, min=2) for name in _EXAMPLE_SIZES}
    dynamic_shapes = (
        *(_dynamic(spec.shape, dimensions) for spec in inputs),
        [tuple(_dynamic(state.shape, dimensions) for state in pair) for pair in _pairs(states)],
    )
    arguments = (*examples, _pairs(past))
    with torch.no_grad(), _quiet_exporter():
        program = torch.export.export(decoder, arguments, dynamic_shapes=dynamic_shapes, strict=False)
        onnx_program = torch.onnx.export(
            program,
            arguments,
            input_names=[spec.name for spec in (*inputs, *_as_inputs(states))],
            output_names=[*(spec.name for spec in decoder_outputs(config, cut)), *(state.present for state in states)],
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert onnx_program is not None
    model = onnx_program.model
    model.opset_imports[DOMAIN] = VERSION
    _name_axes(model.graph, (*inputs, *_as_inputs(states)))
    return model


def _name_axes(graph: ir.Graph, inputs: Sequence[TensorSpec]) -> None:
    """Call variable axes what the manifest calls them; torch chooses one of several names, not always the same."""
    names: dict[str, str] = {}
    for value, spec in zip(graph.inputs, inputs, strict=True):
        assert value.shape is not None
        for axis, size in zip(value.shape, spec.shape, strict=True):
            if isinstance(axis, ir.SymbolicDim) and isinstance(size, str):
                names[str(axis.value)] = size
    outputs = (output for node in graph for output in node.outputs)
    for value in (*graph.inputs, *graph.outputs, *outputs):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(axis, names) for axis in value.shape])


def _renamed(axis: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str:
    if isinstance(axis, int):
        return axis
    return _SYMBOL.sub(lambda found: names.get(found[0], found[0]), str(axis.value))


def _example(spec: TensorSpec | StateSpec) -> Tensor:
    shape = [_EXAMPLE_SIZES[size] if isinstance(size, str) else size for size in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


def _dynamic(shape: tuple[int | str, ...], dimensions: dict[str, torch.export.Dim]) -> dict[int, torch.export.Dim]:
    return {axis: dimensions[size] for axis, size in enumerate(shape) if isinstance(size, str)}


_Item = TypeVar("_Item")


def _pairs(items: Sequence[_Item]) -> list[tuple[_Item, _Item]]:
    """Every layer's two states together."""
    return list(zip(items[::2], items[1::2], strict=True))


def _as_inputs(states: tuple[StateSpec, ...]) -> Iterator[TensorSpec]:
    return (TensorSpec(state.past, state.dtype, state.shape) for state in states)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep torch's progress lines and deprecation notes about its own internals out of ours."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
