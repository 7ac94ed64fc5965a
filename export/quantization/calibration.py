"""Learns the importance of each input feature of a weight from a text: the mean square of its activations.

    text -> tokens -> embeddings -> layer after layer (calibration_layers) -> moments -> importance, by weight name

An error e in one weight adds e * x to an output, so its mean square over tokens is e^2 * E[x^2]. The moments are those
of the float model: hidden states of all tokens pass from layer to layer, with one layer in memory at a time.

For gate and up of the experts all tokens of the layer count, for down those that chose the expert. Few tokens give a
poor estimate, so the moments of each expert are mixed with the mean of all experts, which counts as _PRIOR_TOKENS
tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.text_files import load_tokenizer
from qwonnx.export.checkpoint.weight_names import EMBEDDING, HEAD, tied_weights
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.errors import CalibrationError
from qwonnx.export.quantization.calibration_layers import LayerRunner, Moments
from qwonnx.export.quantization.importance import Importance

# Enough for stable means (every expert of 256 meets 128 of them), and five minutes of a 35B model on two cores.
MAX_TOKENS = 4096
_MIN_TOKENS = 64
_SEQUENCE_TOKENS = 512

# Weight of the layer's mean in every expert's moments, in tokens.
_PRIOR_TOKENS = 16.0
# Another text uses features differently: importance is the moments' ratio to their mean, tempered by this exponent, and
# never below this fraction. 0.75 did better on held-out text than 0.5 or 1 (docs/quantization.md).
_EXPONENT = 0.75
_FLOOR = 0.01


def calibrate(
    folder: Path, source: WeightSource, config: ModelConfig, text: str, on_layer: Callable[[int, int], None]
) -> Importance:
    """Run the checkpoint over a text.

    Args:
        folder: the checkpoint's, for its tokenizer and transformers' view of its config.json.
        source: of its weights.
        text: at most MAX_TOKENS of its tokens are used.
        on_layer: called with the number of finished layers and of all layers.

    Raises:
        CalibrationError: the text is too short.
        CheckpointError: the checkpoint cannot be read.
    """
    moments = gather_moments(folder, source, config, calibration_tokens(folder, text), on_layer)
    return Importance({name: importance_of(moments.squares[name], moments.counts[name]) for name in moments.squares})


def gather_moments(
    folder: Path,
    source: WeightSource,
    config: ModelConfig,
    sequences: Tensor,
    on_layer: Callable[[int, int], None] | None = None,
) -> Moments:
    """Moments of the inputs of every matrix of the text model, over token ids [num_sequences, T].

    Memory: three times the hidden states (num_sequences * T * hidden_size float32), one expert or a slice of a matrix,
    one sequence's activations within a layer, and the moments themselves.
    """
    moments = Moments()
    runner = LayerRunner(folder, config, source, moments)
    embedding = source.rows(EMBEDDING, (config.vocab_size, config.hidden_size))
    hidden = torch.empty((*sequences.shape, config.hidden_size))
    for token in torch.unique(sequences).tolist():
        hidden[sequences == token] = embedding.read(token, 1)
    for index in range(config.num_hidden_layers):
        runner.run(index, hidden)
        if on_layer is not None:
            on_layer(index + 1, config.num_hidden_layers)
    if HEAD not in tied_weights(config):  # a tied head is the embedding, which is also looked up
        norm = source.rows("norm.weight", (config.hidden_size,)).read(0, 1)
        variance = hidden.square().mean(-1, keepdim=True)
        moments.add(HEAD, hidden.mul_(torch.rsqrt(variance + config.rms_norm_eps)).mul_(norm))
    return moments


def importance_of(squares: Tensor, counts: Tensor) -> Tensor:
    """Sums of squares [num_groups, in_features], each over counts [num_groups] vectors -> importance."""
    overall = squares.sum(0) / counts.sum().clamp(min=1.0)
    tempered = ((squares + _PRIOR_TOKENS * overall) / (counts + _PRIOR_TOKENS).unsqueeze(-1)) ** _EXPONENT
    scale = tempered.mean(-1, keepdim=True)
    return torch.where(scale > 0, tempered / scale, 1.0).clamp(min=_FLOOR).bfloat16()


def calibration_tokens(folder: Path, text: str) -> Tensor:
    """Token ids [num_sequences, T]; a shorter rest at the end is not used."""
    # A token usually has four bytes. Eight a token are more than enough, and bound the tokenizer's work.
    ids = load_tokenizer(folder).encode(text[: 8 * MAX_TOKENS])[:MAX_TOKENS]
    if len(ids) < _MIN_TOKENS:
        raise CalibrationError(f"the calibration text has {len(ids)} tokens: give at least {_MIN_TOKENS}")
    length = min(len(ids), _SEQUENCE_TOKENS)
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
