"""FP8 matrices: values from blocks of 128 x 128, and refusals. The writer is independent: plain numpy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.formats.float8 import INVERSE_SUFFIX, SCALE_SUFFIX, Float8Weight
from qwonnx.export.errors import CheckpointError, MissingTensorError, TensorFormatError
from tests.checkpoints.quantized_formats import E4M3_VALUES, Matrix, Stored, fp8_matrix, write_tensors
from tests.checkpoints.row_formats import float8_matrix

pytestmark = pytest.mark.fast

NAME = "layers.0.self_attn.q_proj.weight"
SCALES = NAME + "_scale_inv"


def _matrix(shape: tuple[int, int], scale_dtype: str = "BF16") -> Matrix:
    return fp8_matrix(NAME, np.random.default_rng(2).standard_normal(shape).astype(np.float32), scale_dtype)


def _open(tmp_path: Path, stored: dict[str, Stored], shape: tuple[int, ...]) -> Float8Weight:
    write_tensors(tmp_path / "model.safetensors", stored)
    return Float8Weight.open(Checkpoint.open(tmp_path), NAME, INVERSE_SUFFIX, shape)


def test_the_writer_knows_the_values_of_e4m3() -> None:
    expected = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(E4M3_VALUES, expected)


@pytest.mark.parametrize("scale_dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("shape", [(256, 384), (200, 300), (64, 128), (129, 127), (8, 8)], ids=str)
def test_values_are_code_times_scale_to_the_bit(tmp_path: Path, shape: tuple[int, int], scale_dtype: str) -> None:
    matrix = _matrix(shape, scale_dtype)
    weight = _open(tmp_path, matrix.stored, shape)
    assert torch.equal(weight.read(0, shape[0]), torch.tensor(matrix.meaning))
    assert weight.num_bytes == sum(len(tensor.content) for tensor in matrix.stored.values())


def test_values_are_those_of_transformers(tmp_path: Path) -> None:
    weight = _open(tmp_path, _matrix((256, 384)).stored, (256, 384))
    checkpoint = Checkpoint.open(tmp_path)
    theirs = Fp8Dequantize(None)._dequantize_one(checkpoint.read(NAME), checkpoint.read(SCALES), torch.float32)
    assert torch.equal(weight.read(0, 256), theirs)


def test_any_slice_of_rows_is_the_same_as_those_rows_of_the_whole(tmp_path: Path) -> None:
    weight = _open(tmp_path, _matrix((300, 200)).stored, (300, 200))
    whole = weight.read(0, 300)
    for start, count in ((0, 1), (127, 2), (128, 128), (100, 200), (299, 1), (0, 300)):
        assert torch.equal(weight.read(start, count), whole[start : start + count])


def _zeros(dtype: str, *shape: int) -> Stored:
    return Stored(dtype, shape, bytes(math.prod(shape) * {"F8_E4M3": 1, "BF16": 2, "I32": 4}[dtype]))


@pytest.mark.parametrize(
    ("name", "tensor", "kind", "named"),
    [
        (SCALES, None, MissingTensorError, f"{NAME} in F8_E4M3 and no {SCALES}"),
        (SCALES, _zeros("BF16", 2, 2), TensorFormatError, f"{SCALES} has shape [2, 2]"),
        (SCALES, _zeros("BF16", 2), TensorFormatError, f"{SCALES} has shape [2]"),
        (SCALES, _zeros("I32", 2, 3), TensorFormatError, f"{SCALES} is stored as I32"),
        (NAME, _zeros("F8_E4M3", 256, 300), TensorFormatError, f"{NAME} has shape [256, 300]"),
        (NAME, _zeros("BF16", 200, 300), TensorFormatError, f"{NAME} is stored as BF16"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_before_a_value_is_read(
    tmp_path: Path, name: str, tensor: Stored | None, kind: type[CheckpointError], named: str
) -> None:
    stored = {key: value for key, value in _matrix((200, 300)).stored.items() if key != name}
    if tensor is not None:
        stored[name] = tensor
    with pytest.raises(kind) as caught:
        _open(tmp_path, stored, (200, 300))
    message = str(caught.value)
    assert "\n" not in message
    assert named in message
    assert ": " in message
    assert "download" not in message


def test_blocks_of_what_is_no_matrix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TensorFormatError, match=r"has shape \[200, 300\] where"):
        _open(tmp_path, _matrix((200, 300)).stored, (2, 100, 300))


@pytest.mark.parametrize("per", ["row", "matrix", "block"])
@pytest.mark.parametrize("shape", [(200, 300), (3, 200, 300), (2, 128, 256)], ids=str)
def test_scales_of_rows_matrices_and_blocks_of_one_matrix_or_many(
    tmp_path: Path, shape: tuple[int, ...], per: str
) -> None:
    values = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    matrix = float8_matrix(NAME, values, per)
    write_tensors(tmp_path / "model.safetensors", matrix.stored)
    weight = Float8Weight.open(Checkpoint.open(tmp_path), NAME, SCALE_SUFFIX, shape)
    expected = torch.tensor(matrix.meaning).flatten(0, -2)
    num_rows = len(expected)
    for start, count in (
        (0, num_rows),
        (0, 1),
        (100, 28),
        (126, 4),
        (num_rows - 1, 1),
        (150, min(300, num_rows - 150)),
    ):
        assert torch.equal(weight.read(start, count), expected[start : start + count])


@pytest.mark.parametrize("shape", [(8,), (4, 1), (2, 2), (1, 4)], ids=str)
def test_scales_of_another_layout_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    stored = {**_matrix((256, 384)).stored}
    stored[SCALES] = Stored("F32", shape, bytes(4 * math.prod(shape)))
    with pytest.raises(TensorFormatError, match=r"_scale_inv has shape .* where config\.json asks for \[2, 3\]"):
        _open(tmp_path, stored, (256, 384))
