"""Whether a checkpoint's tensors are those of its config.json: every name, shape and type, before anything is traced.

Tracing takes seconds to minutes and trusts the configuration's sizes; the headers are already read, so a file that does
not belong is refused in milliseconds, and no later stage meets a size that no tensor has.
"""

from __future__ import annotations

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.errors import MissingTensorError
from qwonnx.export.modeling.trace import decoder_weights


def fitting_weights(source: WeightSource, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's weights, each of which the checkpoint has, and none besides.

    Raises:
        MissingTensorError, TensorFormatError, UnusedTensorError: see WeightSource.
    """
    # First, since building a thousand layers takes seconds: there cannot be more than the checkpoint has.
    if source.num_layers < config.num_hidden_layers:
        raise MissingTensorError(
            f"config.json has {config.num_hidden_layers} layers and the checkpoint {source.num_layers}:"
            " it is incomplete, or its config.json is not its own; download both again"
        )
    shapes = decoder_weights(config)
    for name, shape in shapes.items():
        source.rows(name, shape)
    source.check_all_used()
    return shapes
