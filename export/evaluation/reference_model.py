"""The reference of an artifact: transformers' model on a checkpoint's own weights, in float32.

transformers alone loads a float checkpoint. For a quantised one it would need kernels of the method: few run on a CPU,
and FP8 kernels also quantise activations. So this module dequantises each weight when transformers asks for it, and
writes nothing to disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import logging

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.config import load_config
from qwonnx.export.checkpoint.stored_weights import StoredWeights
from qwonnx.export.errors import CheckpointError, VerificationError, first_line


def load_reference_model(checkpoint: Path, *, pictures: bool = False) -> Any:
    """The model, ready to run; it takes memory for its float32 weights and for those that transformers is joining.

    Args:
        checkpoint: its folder.
        pictures: also load the vision tower, which the checkpoint must have.

    Raises:
        CheckpointError: the checkpoint does not open, or a weight cannot be read.
        VerificationError: transformers does not load the checkpoint, or misses weights in it.
    """
    quantization = load_config(checkpoint).quantization
    auto = AutoModelForImageTextToText if pictures else AutoModelForCausalLM
    try:
        if quantization is None:
            # float32, not "auto": bfloat16 would round A_log, which checkpoints store in float32.
            return auto.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True).eval()
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        for described in (config, config.get_text_config()):
            if hasattr(described, "quantization_config"):
                del described.quantization_config
        with torch.device("meta"):
            empty = auto.from_config(config)  # without pictures, only the text model of the config
        stored = StoredWeights(Checkpoint.open(checkpoint), quantization)
        model, report = type(empty).from_pretrained(
            None,
            config=empty.config,
            state_dict={name: _Lazy(stored, name) for name in stored.names},
            dtype=torch.float32,
            output_loading_info=True,
        )
    except CheckpointError:
        raise
    except Exception as error:  # exceptions of transformers and of its libraries
        raise VerificationError(f"transformers does not load {checkpoint.name}: {first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise VerificationError(
            f"transformers does not find {missing[0]} in {checkpoint.name}, and {len(missing) - 1} more are missing:"
            " compare with a complete checkpoint"
        )
    return model.eval()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and its hints about kernels out of our output."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@dataclass(frozen=True, slots=True)
class _Lazy:
    """A weight that is read when transformers indexes it with [...], as it indexes slices of safetensors files."""

    stored: StoredWeights
    name: str

    def __getitem__(self, index: object) -> torch.Tensor:
        assert index is Ellipsis
        shape = self.stored.shape(self.name)
        weight = self.stored.open(self.name, shape)
        return weight.read(0, weight.num_rows).float().view(shape)
