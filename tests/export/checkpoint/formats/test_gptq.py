"""GPTQ tensors: their values and codes, and refusals. The writer is independent: plain numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.formats.codes import CodeRows, StoredCodes
from qwonnx.export.checkpoint.formats.gptq import GptqWeight
from qwonnx.export.checkpoint.formats.gptq_config import GptqFormat
from qwonnx.export.errors import CheckpointError, MissingTensorError, TensorFormatError
from tests.checkpoints.quantized_formats import Matrix, Stored, gptq_matrix, integers, write_tensors

pytestmark = pytest.mark.fast

NAME = "layers.0.mlp.up_proj"
SHAPE = (48, 192)

# bits, group size (None: whole rows), symmetric, dtype of scales
Case = tuple[int, int | None, bool, str]
CASES: list[Case] = [
    (4, 32, True, "F16"),
    (4, 32, False, "F16"),
    (4, 64, False, "BF16"),
    (4, 128, False, "F32"),  # the second group of a row has 64 input features
    (4, None, False, "F16"),
    (8, 32, True, "BF16"),
    (8, 128, False, "F16"),
]


def _matrix(case: Case, shape: tuple[int, int] = SHAPE) -> Matrix:
    bits, group_size, symmetric, scale_dtype = case
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return gptq_matrix(NAME, values, bits, group_size or -1, symmetric, scale_dtype)


def _format(case: Case) -> GptqFormat:
    return GptqFormat((case[0],), (case[1],), symmetric=case[2], may_permute=False)


def _open(tmp_path: Path, stored: dict[str, Stored], written: GptqFormat, shape: tuple[int, ...] = SHAPE) -> GptqWeight:
    write_tensors(tmp_path / "model.safetensors", stored)
    return GptqWeight.open(Checkpoint.open(tmp_path), NAME, shape, written)


def _dequantized(rows: CodeRows, bits: int, block_size: int) -> torch.Tensor:
    """float32 weights of rows in the kernels' layout: two codes of 4 bits a byte, the first in the low half."""

    def unpacked(packed: torch.Tensor) -> torch.Tensor:
        return packed if bits == 8 else torch.stack((packed & 15, packed >> 4), -1).flatten(1)

    zero_points = unpacked(rows.zero_points)[:, : rows.scales.shape[1]]
    spread = [part.float().repeat_interleave(block_size, 1) for part in (zero_points, rows.scales)]
    return (unpacked(rows.codes).float() - spread[0]) * spread[1]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_are_those_that_the_codes_stand_for_to_the_bit(tmp_path: Path, case: Case) -> None:
    matrix = _matrix(case)
    weight = _open(tmp_path, matrix.stored, _format(case))
    assert torch.equal(weight.read(0, 48), torch.tensor(matrix.meaning))
    assert weight.num_bytes == sum(len(tensor.content) for tensor in matrix.stored.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_codes_handed_over_stand_for_the_same_values_to_the_bit(tmp_path: Path, case: Case) -> None:
    matrix = _matrix(case)
    weight = _open(tmp_path, matrix.stored, _format(case))
    for block_size in (16, 32, 64):
        if (case[1] or 64) % block_size:
            continue  # a block lies in one group
        rows = weight.read_codes(0, 48, block_size)
        kinds = (rows.codes.dtype, rows.scales.dtype, rows.zero_points.dtype)
        assert kinds == (torch.uint8, torch.float32, torch.uint8)
        assert rows.codes.shape == (48, 192 * case[0] // 8)
        assert rows.scales.shape == (48, 192 // block_size)
        assert rows.zero_points.shape == (48, math.ceil(192 / block_size * case[0] / 8))
        assert torch.equal(_dequantized(rows, case[0], block_size), torch.tensor(matrix.meaning))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_slice_of_rows_is_the_same_as_those_rows_of_the_whole(tmp_path: Path, case: Case) -> None:
    weight = _open(tmp_path, _matrix(case).stored, _format(case))
    whole, codes = weight.read(0, 48), weight.read_codes(0, 48, 32)
    for start, count in ((0, 1), (3, 7), (8, 8), (13, 30), (47, 1)):
        assert torch.equal(weight.read(start, count), whole[start : start + count])
        rows = weight.read_codes(start, count, 32)
        assert torch.equal(rows.codes, codes.codes[start : start + count])
        assert torch.equal(rows.scales, codes.scales[start : start + count])
        assert torch.equal(rows.zero_points, codes.zero_points[start : start + count])


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_codes_are_laid_out_as_onnxruntime_genai_lays_them_out(tmp_path: Path, bits: int, symmetric: bool) -> None:
    loaders = pytest.importorskip("onnxruntime_genai.models.loaders.gptq")
    from onnxruntime_genai.models.loaders.base import QuantizedTensorModule

    values = np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32)
    # It adds 1 to each zero point alone, and GPTQModel adds to whole words: the same if no zero point is 0.
    matrix = gptq_matrix(NAME, values, bits, 32, symmetric, least_zero_point=1)
    weight = _open(tmp_path, matrix.stored, _format((bits, 32, symmetric, "F16")), (64, 256))
    checkpoint = Checkpoint.open(tmp_path)
    module = QuantizedTensorModule()
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        setattr(module, part, checkpoint.read(f"{NAME}.{part}"))
    module.bits, module.group_size = bits, 32
    loader = object.__new__(loaders.GPTQModel)  # without reading a whole model
    loader.set_quantized_tensor_properties(module)
    loader.repack_quantized_tensor(module, True)
    rows = weight.read_codes(0, 64, 32)
    assert torch.equal(rows.codes, module.qweight.reshape(64, -1))
    assert torch.equal(rows.scales, module.scales.reshape(64, -1).float())
    assert torch.equal(rows.zero_points, module.qzeros.reshape(64, -1))


def test_a_module_with_a_rule_of_its_own_is_known_by_its_shapes(tmp_path: Path) -> None:
    written = GptqFormat((4, 8), (128, 32), symmetric=True, may_permute=False)
    for bits, group_size in ((4, 128), (4, 32), (8, 128), (8, 32)):
        matrix = _matrix((bits, group_size, True, "F16"))
        weight = _open(tmp_path, matrix.stored, written)
        assert weight.codes == StoredCodes(bits, group_size, has_zero_points=False)
        assert torch.equal(weight.read(0, 48), torch.tensor(matrix.meaning))


Edit = Callable[[dict[str, Stored]], object]


def _permuted(stored: dict[str, Stored]) -> None:
    stored[f"{NAME}.g_idx"] = integers(np.arange(192)[::-1] // 16)


def _replaced(suffix: str, shape: tuple[int, ...], dtype: str = "I32") -> Edit:
    size = {"I32": 4, "F16": 2, "BF16": 2}[dtype]
    return lambda stored: stored.update({NAME + suffix: Stored(dtype, shape, bytes(math.prod(shape) * size))})


def _without(suffix: str) -> Edit:
    return lambda stored: stored.pop(NAME + suffix)


@pytest.mark.parametrize(
    ("edit", "kind", "named"),
    [
        (_permuted, TensorFormatError, f"{NAME}.g_idx names groups beyond the 6"),
        (_without(".scales"), MissingTensorError, f"no {NAME}.scales of shape [6, 48]"),
        (_without(".qzeros"), MissingTensorError, f"no {NAME}.qzeros of shape [6, 6]"),
        (_replaced(".qweight", (48, 48)), TensorFormatError, f"{NAME}.qweight has shape [48, 48]"),
        (_replaced(".qweight", (24, 40)), TensorFormatError, f"{NAME}.qweight has shape [24, 40]"),
        (_replaced(".qweight", (24, 48), "F16"), TensorFormatError, f"{NAME}.qweight is stored as F16"),
        (_replaced(".scales", (3, 48), "F16"), TensorFormatError, f"{NAME}.scales has shape [3, 48]"),
        (_replaced(".scales", (6, 48)), TensorFormatError, f"{NAME}.scales is stored as I32"),
        (_replaced(".qzeros", (6, 48)), TensorFormatError, f"{NAME}.qzeros has shape [6, 48]"),
        (_replaced(".g_idx", (191,)), TensorFormatError, f"{NAME}.g_idx has shape [191]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_before_a_value_is_read(
    tmp_path: Path, edit: Edit, kind: type[CheckpointError], named: str
) -> None:
    case = (4, 32, True, "F16")
    stored = _matrix(case).stored
    edit(stored)
    with pytest.raises(kind) as caught:
        _open(tmp_path, stored, _format(case))
    message = str(caught.value)
    assert "\n" not in message
    assert named in message
    assert ": " in message
    assert "download" not in message


def test_without_g_idx_features_are_in_order_unless_the_tool_may_have_permuted_them(tmp_path: Path) -> None:
    matrix = _matrix((4, 32, True, "F16"))
    del matrix.stored[f"{NAME}.g_idx"]
    weight = _open(tmp_path, matrix.stored, GptqFormat((4,), (32,), symmetric=True, may_permute=False))
    assert torch.equal(weight.read(0, 48), torch.tensor(matrix.meaning))
    with pytest.raises(MissingTensorError, match=r"no layers\.0\.mlp\.up_proj\.g_idx, which desc_act needs"):
        _open(tmp_path, matrix.stored, GptqFormat((4,), (32,), symmetric=True, may_permute=True))


def test_zero_points_of_their_own_in_a_symmetric_checkpoint_are_refused(tmp_path: Path) -> None:
    stored = _matrix((4, 32, False, "F16")).stored
    weight = _open(tmp_path, stored, _format((4, 32, True, "F16")))
    for read in (lambda: weight.read(0, 48), lambda: weight.read_codes(0, 48, 32)):
        with pytest.raises(TensorFormatError, match=r"up_proj\.qzeros has zero points other than 8"):
            read()


def test_a_weight_that_no_words_can_hold_is_refused(tmp_path: Path) -> None:
    stored = _matrix((4, 32, True, "F16")).stored
    for shape in ((48, 190), (44, 192), (2, 48, 192)):
        with pytest.raises(TensorFormatError, match="multiples of 8"):
            _open(tmp_path, stored, _format((4, 32, True, "F16")), shape)
