"""Checks that a checkpoint's tensors fit its config.json: every name, shape and type, before anything is traced.

Tracing takes seconds to minutes and trusts the configuration's sizes. The headers are already read, so a checkpoint
that does not fit is refused in milliseconds, and later stages can trust the sizes.
"""

from __future__ import annotations

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.errors import MissingTensorError
from qwonnx.export.modeling.trace import decoder_weights


def fitting_weights(source: WeightSource, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's weights, after a check that the checkpoint has exactly these.

    Raises:
        MissingTensorError, TensorFormatError, UnusedTensorError: see WeightSource.
    """
    source.check_format()
    # Before the weights, because building a thousand layers takes seconds.
    if source.num_layers < config.num_hidden_layers:
        raise MissingTensorError(
            f"config.json has {config.num_hidden_layers} layers and the checkpoint {source.num_layers}:"
            " a save or a copy is incomplete, or its config.json belongs to another model"
        )
    shapes = decoder_weights(config)
    for name, shape in shapes.items():
        source.rows(name, shape)
    source.check_all_used()
    return shapes
