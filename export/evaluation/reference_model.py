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
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import logging

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.chosen_files import INDEX_NAME, SINGLE_NAME, choose_files
from qwonnx.export.checkpoint.config import load_config
from qwonnx.export.checkpoint.formats.stored_weights import StoredWeights
from qwonnx.export.checkpoint.transformers_config import transformers_config
from qwonnx.export.errors import CheckpointError, VerificationError, first_line

# Sizes that torch's grouped product of experts needs: rows of a multiple of 16 bytes.
_GROUPED_MULTIPLE = 4


def load_reference_model(checkpoint: Path, weights_file: str | None = None, *, pictures: bool = False) -> Any:
    """The model, ready to run; it takes memory for its float32 weights and for those that transformers is joining.

    transformers opens the files itself if they are those that it would choose and hold plain floats under published
    names. Else it is given the tensors that the export reads.

    Args:
        checkpoint: its folder.
        weights_file: see choose_files.
        pictures: also load the vision tower, which the checkpoint must have.

    Raises:
        CheckpointError: the checkpoint does not open, or a weight cannot be read.
        VerificationError: transformers does not load the checkpoint, misses weights in it, or loads something else too.
    """
    parsed = load_config(checkpoint)
    tensors = Checkpoint.open(checkpoint, weights_file)
    auto = AutoModelForImageTextToText if pictures else AutoModelForCausalLM
    # float32, not "auto": bfloat16 would round A_log, which checkpoints store in float32.
    arguments: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    if parsed.num_experts and (
        parsed.hidden_size % _GROUPED_MULTIPLE or parsed.moe_intermediate_size % _GROUPED_MULTIPLE
    ):
        arguments["experts_implementation"] = "eager"
    try:
        config = transformers_config(checkpoint, parsed)
        if parsed.quantization is None and not tensors.is_renamed and _reads_the_same(checkpoint, tensors):
            model, report = auto.from_pretrained(checkpoint, config=config, local_files_only=True, **arguments)
        else:
            for described in (config, config.get_text_config()):
                if hasattr(described, "quantization_config"):
                    del described.quantization_config
            with torch.device("meta"):
                empty = auto.from_config(config)  # without pictures, only the text model of the config
            stored = StoredWeights(tensors, parsed.quantization)
            given = {name: _Lazy(stored, name) for name in stored.names}
            model, report = type(empty).from_pretrained(None, config=empty.config, state_dict=given, **arguments)
    except CheckpointError:
        raise
    except Exception as error:  # exceptions of transformers and of its libraries
        raise VerificationError(f"transformers does not load {checkpoint.name}: {first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise VerificationError(
            f"transformers does not find {missing[0]} in {checkpoint.name}, and {len(missing) - 1} more are missing:"
            " compare with a complete checkpoint"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise VerificationError(
            f"transformers loads an adapter on top of {checkpoint.name}, which an export does not read: move it away,"
            " or compare with the merged model"
        )
    return model.eval()


@contextmanager
def layer_peaks(model: Any) -> Iterator[list[float]]:
    """Record the largest absolute value of the residual stream after each layer, while the model runs inside."""
    layers = model.get_decoder().layers
    peaks = [0.0] * len(layers)

    def record(index: int, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        peaks[index] = max(float(hidden.abs().max()), peaks[index])

    handles = [
        layer.register_forward_hook(lambda module, inputs, output, index=index: record(index, output))
        for index, layer in enumerate(layers)
    ]
    try:
        yield peaks
    finally:
        for handle in handles:
            handle.remove()


def _reads_the_same(checkpoint: Path, tensors: Checkpoint) -> bool:
    """Whether transformers would choose the files that were opened."""
    opened = {file.name for file in tensors.files}
    if (checkpoint / SINGLE_NAME).is_file():
        return opened == {SINGLE_NAME}
    return (checkpoint / INDEX_NAME).is_file() and set(choose_files(checkpoint).names) == opened


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
