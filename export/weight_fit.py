"""Whether a checkpoint's tensors are those of its config.json: every name, shape and type, before anything is traced.

Tracing takes seconds to minutes and trusts the configuration's sizes; the headers are already read, so a file that does
not belong is refused in milliseconds, and no later stage meets a size that no tensor has.
"""

from __future__ import annotations

import re

import torch

from qwonnx.export.checkpoint import Checkpoint
from qwonnx.export.config import ModelConfig
from qwonnx.export.errors import MissingTensorError
from qwonnx.export.modeling.decoder import Decoder
from qwonnx.export.modeling.rotary import RotaryAngles
from qwonnx.export.weights import WeightSource

_LAYER = re.compile(r"\.layers\.(\d{1,6})\.")


def check_weights(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Ask for every weight of the model as the weight stage will.

    Raises:
        MissingTensorError, TensorFormatError, UnusedTensorError: see WeightSource.
    """
    # First, since building a thousand layers takes seconds: there cannot be more than the checkpoint has.
    num_layers = 1 + max((int(found[1]) for found in map(_LAYER.search, checkpoint.names) if found), default=-1)
    if num_layers < config.num_hidden_layers:
        raise MissingTensorError(
            f"config.json has {config.num_hidden_layers} layers and the checkpoint {num_layers}:"
            " it is incomplete, or its config.json is not its own; download both again"
        )
    rotary_angles = RotaryAngles(config)  # real: it has a few values, and arithmetic on meta tensors loads a compiler
    with torch.device("meta"):
        decoder = Decoder(config, rotary_angles)
    source = WeightSource(checkpoint, config)
    for name, parameter in decoder.named_parameters():
        source.rows(name, tuple(parameter.shape))
    source.check_all_used()
