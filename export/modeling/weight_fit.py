"""Checks that a checkpoint's tensors fit its config.json: every name, shape and type, before anything is traced.

Tracing takes seconds to minutes and trusts the configuration's sizes. The headers are already read, so a checkpoint
that does not fit is refused in milliseconds, and later stages can trust the sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.errors import MissingTensorError, UnusedTensorError

_MAX_LAYERS = 1 << 10  # of a config.json that is read

Shapes = dict[str, tuple[int, ...]]


def fitting_weights(source: WeightSource, config: ModelConfig) -> Shapes:
    """Names and shapes of the model's weights, after a check that the checkpoint has exactly these.

    Raises:
        MissingTensorError, TensorFormatError, UnusedTensorError: see WeightSource.
    """
    from qwonnx.export.modeling.trace import decoder_weights  # torch, which a check alone does not need

    return check_fit(source, config, partial(decoder_weights, config))


def _check_layers(source: WeightSource, config: ModelConfig) -> None:
    """Refuse layers of another type than config.json says, as tools leave them that copy or remove layers."""
    found = [source.layer_type(layer) for layer in range(min(source.num_layers, _MAX_LAYERS))]
    for layer, (kind, said) in enumerate(zip(found, config.layer_types, strict=False)):
        if kind not in (None, said):
            full = ", ".join(str(number) for number, one in enumerate(found) if one == "full_attention") or "none"
            raise MissingTensorError(
                f"config.json calls layer {layer} {said} and its tensors are of {kind}, as after a merge or a pruning:"
                f" correct num_hidden_layers and layer_types; by the tensors there are {len(found)} layers, and of"
                f" full_attention {full}"
            )
    if source.num_layers > config.num_hidden_layers:
        raise UnusedTensorError(
            f"config.json has {config.num_hidden_layers} layers and the checkpoint {source.num_layers}, as after a"
            " merge: correct num_hidden_layers and layer_types, or use the config.json that was saved with the weights"
        )


def check_fit(source: WeightSource, config: ModelConfig, shapes_of: Callable[[], Shapes]) -> Shapes:
    """The shapes, after a check that the checkpoint has exactly these weights; raises as fitting_weights does.

    Args:
        source: of the weights.
        config: of the model.
        shapes_of: makes the shapes. It is called last, because building a thousand layers takes seconds.
    """
    source.check_format()
    if source.num_layers < config.num_hidden_layers:
        raise MissingTensorError(
            f"config.json has {config.num_hidden_layers} layers and the checkpoint {source.num_layers}:"
            " a save or a copy is incomplete, or its config.json belongs to another model"
        )
    _check_layers(source, config)
    shapes = shapes_of()
    for name, shape in shapes.items():
        source.rows(name, shape)
    source.check_all_used()
    return shapes
