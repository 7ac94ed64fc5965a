"""Weights of every quantised format: their values and codes to the bit, and any slice. The writers are numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.formats.codes import CodedWeight, CodeRows
from qwonnx.export.checkpoint.formats.modelopt_config import of_side_file
from qwonnx.export.checkpoint.formats.source_quantization import SourceQuantization, parse_quantization
from qwonnx.export.checkpoint.formats.stored_weights import StoredWeight, StoredWeights
from qwonnx.export.errors import CheckpointError
from qwonnx.export.quantization.quantize import quantize_blocks
from tests.checkpoints.every_format import FORMATS, WrittenFormat
from tests.checkpoints.quantized_formats import Stored, write_tensors
from tests.export.dequantized import dequantize_blocks

pytestmark = pytest.mark.fast

NAME, SHAPE = "layers.0.mlp.down_proj.weight", (192, 160)
VALUES = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
SLICES = ((0, 1), (3, 7), (8, 8), (13, 130), (191, 1), (0, 192))


@dataclass(frozen=True, slots=True)
class Written:
    """A weight in a format, and what it means."""

    format: WrittenFormat
    stored: dict[str, Stored]
    weight: StoredWeight
    exact: torch.Tensor


def quantization_of(chosen: WrittenFormat) -> SourceQuantization | None:
    """What config.json, or the file beside it, says of a format."""
    config = chosen.config or of_side_file(chosen.side or {})
    return parse_quantization({"quantization_config": config}, {}, "config.json")


@pytest.fixture(params=list(FORMATS))
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    chosen = FORMATS[request.param]
    matrix = chosen.matrix(NAME, VALUES)
    write_tensors(tmp_path / "model.safetensors", matrix.stored)
    stored = StoredWeights(Checkpoint.open(tmp_path), quantization_of(chosen))
    assert stored.shape(NAME) == SHAPE
    return Written(chosen, matrix.stored, stored.open(NAME, SHAPE), torch.tensor(matrix.meaning))


def test_values_are_those_that_the_format_means_to_the_bit(written: Written) -> None:
    weight, exact = written.weight, written.exact
    assert (weight.num_rows, weight.num_columns) == SHAPE
    for start, count in SLICES:
        assert torch.equal(weight.read(start, count), exact[start : start + count])
    assert torch.equal(weight.read_part(5, 32, 64), exact[5:6, 32:96])
    # The writer chooses codes so well that another reading of them would show; its zero points are of any size.
    floats = torch.tensor(VALUES)
    if weight.codes is None or not weight.codes.has_zero_points:
        assert float((exact - floats).norm() / floats.norm()) < 0.25


def test_codes_that_are_kept_mean_the_same_to_the_bit(written: Written) -> None:
    weight = written.weight
    assert (weight.codes is not None) == written.format.keeps_codes
    if weight.codes is None:
        return
    assert isinstance(weight, CodedWeight)
    bits = weight.codes.bits
    for start, count in SLICES:
        rows = weight.read_codes(start, count, 32)
        assert rows.codes.shape == (count, 160 * bits // 8)
        assert rows.scales.shape == (count, 5)
        assert torch.equal(dequantized(rows, bits, 32), written.exact[start : start + count])


def test_the_bytes_of_a_weight_are_those_of_the_tensors_that_are_read(written: Written) -> None:
    unread = ("input_scale", "input_global_scale", "weight_shape", "weight_format", "bitsandbytes__nf4")
    sizes = [len(tensor.content) for name, tensor in written.stored.items() if not name.endswith(unread)]
    assert written.weight.num_bytes == sum(sizes)


def dequantized(rows: CodeRows, bits: int, block_size: int) -> torch.Tensor:
    """float32 weights of rows in the kernels' layout: two codes of 4 bits a byte, the first in the low half."""

    def unpacked(packed: torch.Tensor) -> torch.Tensor:
        return packed if bits == 8 else torch.stack((packed & 15, packed >> 4), -1).flatten(1)

    zero_points = unpacked(rows.zero_points)[:, : rows.scales.shape[1]]
    spread = [part.float().repeat_interleave(block_size, 1) for part in (zero_points, rows.scales)]
    return (unpacked(rows.codes).float() - spread[0]) * spread[1]


# Tensors without which a weight is still what it was: scales of activations, and groups that follow each other.
_OPTIONAL = ("input_scale", "input_global_scale", "weight_format")


@pytest.mark.parametrize("name", FORMATS)
def test_a_tensor_that_is_lost_or_does_not_fit_is_refused_before_a_value_is_read(tmp_path: Path, name: str) -> None:
    chosen = FORMATS[name]
    whole = chosen.matrix(NAME, VALUES).stored
    optional = (*_OPTIONAL, *(() if name == "gptq-desc-act" else ("g_idx",)))
    for lost, tensor in whole.items():
        if lost.endswith(optional):
            continue
        content = tensor.content
        half = Stored("U8", (len(content) // 2,), content[: len(content) // 2])
        for edited in ({**whole, lost: half}, {other: kept for other, kept in whole.items() if other != lost}):
            write_tensors(tmp_path / "model.safetensors", edited)
            with pytest.raises(CheckpointError) as caught:
                StoredWeights(Checkpoint.open(tmp_path), quantization_of(chosen)).open(NAME, SHAPE)
            message = str(caught.value)
            assert "\n" not in message
            assert ": " in message


@pytest.mark.parametrize("name", ["nvfp4", "nf4", "gptq-desc-act"])
def test_what_rounding_again_adds_is_as_large_as_the_notes_say(name: str) -> None:
    normal = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
    decoded = torch.tensor(FORMATS[name].matrix("layers.0.weight", normal).meaning)
    for bits, expected in ((4, 0.1), (8, 0.006)):
        codes, scales = torch.empty((256, 128 * bits), dtype=torch.uint8), torch.empty((256, 8))
        quantize_blocks(decoded, bits, codes, scales)
        added = dequantize_blocks(codes, scales, bits) - decoded
        assert float(added.norm() / decoded.norm()) == pytest.approx(expected, rel=0.2)
