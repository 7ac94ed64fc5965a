"""Logical names of a quantised checkpoint's tensors: which belong together, are left over, or are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.formats.float8 import Float8Weight
from qwonnx.export.checkpoint.formats.float8_config import Fp8Format
from qwonnx.export.checkpoint.formats.gptq import GptqWeight
from qwonnx.export.checkpoint.formats.gptq_config import GptqFormat
from qwonnx.export.checkpoint.formats.source_quantization import SourceQuantization
from qwonnx.export.checkpoint.formats.stored_weights import PlainWeight, StoredWeights
from qwonnx.export.errors import MissingTensorError, TensorFormatError
from tests.checkpoints.quantized_formats import Matrix, Stored, fp8_matrix, gptq_matrix, write_tensors

pytestmark = pytest.mark.fast

GPTQ = GptqFormat((4, 8), (32, 128), symmetric=True, may_permute=False)
VALUES = np.random.default_rng(5).standard_normal((16, 64)).astype(np.float32)


def _float(*shape: int) -> Stored:
    return Stored("F32", shape, VALUES.tobytes())


def _open(tmp_path: Path, stored: dict[str, Stored], quantization: SourceQuantization | None) -> StoredWeights:
    write_tensors(tmp_path / "model.safetensors", stored)
    return StoredWeights(Checkpoint.open(tmp_path), quantization)


def _fp8() -> Matrix:
    return fp8_matrix("a.weight", VALUES)


def _gptq(bits: int = 4) -> Matrix:
    return gptq_matrix("a", VALUES, bits, 32)


def test_parts_are_one_weight_and_floats_stay_beside_it(tmp_path: Path) -> None:
    for matrix, quantization, kind in ((_fp8(), Fp8Format(), Float8Weight), (_gptq(), GPTQ, GptqWeight)):
        stored = _open(tmp_path, {**matrix.stored, "b.weight": _float(16, 64), "norm": _float(1024)}, quantization)
        assert stored.names == {"a.weight", "b.weight", "norm"}
        assert {info.name for info in stored.tensors("a.weight")} == matrix.stored.keys()
        assert stored.shape("a.weight") == stored.shape("b.weight") == (16, 64)
        weight, plain = stored.open("a.weight", (16, 64)), stored.open("b.weight", (16, 64))
        assert isinstance(weight, kind)
        assert isinstance(plain, PlainWeight)
        assert torch.equal(weight.read(0, 16), torch.tensor(matrix.meaning))
        assert torch.equal(plain.read(3, 2), torch.tensor(VALUES[3:5]))


def test_a_shape_is_known_by_the_codes_and_scales_of_a_module(tmp_path: Path) -> None:
    for bits in (4, 8):
        assert _open(tmp_path, _gptq(bits).stored, GPTQ).shape("a.weight") == (16, 64)


def test_parts_without_their_main_tensor_keep_their_names_so_that_nothing_uses_them(tmp_path: Path) -> None:
    scale = {name: tensor for name, tensor in _fp8().stored.items() if name != "a.weight"}
    assert _open(tmp_path, scale, Fp8Format()).names == {"a.weight_scale_inv"}
    rest = {name: tensor for name, tensor in _gptq().stored.items() if name != "a.qweight"}
    assert _open(tmp_path, rest, GPTQ).names == rest.keys()


def test_a_format_that_config_json_does_not_name_is_not_looked_for(tmp_path: Path) -> None:
    stored = _open(tmp_path, _gptq().stored, None)
    assert stored.names == _gptq().stored.keys()
    with pytest.raises(MissingTensorError, match=r"no a\.weight of shape"):
        stored.open("a.weight", (16, 64))
    with pytest.raises(TensorFormatError, match=r"a\.weight is stored as F8_E4M3: export"):
        _open(tmp_path, _fp8().stored, None).open("a.weight", (16, 64))


def test_a_weight_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TensorFormatError, match="a has a weight and a qweight: remove one"):
        _open(tmp_path, {**_gptq().stored, "a.weight": _float(16, 64)}, GPTQ)


def test_codes_without_scales_are_named(tmp_path: Path) -> None:
    only = {"a.weight": _fp8().stored["a.weight"]}
    with pytest.raises(MissingTensorError, match=r"a\.weight in F8_E4M3 and no a\.weight_scale_inv"):
        _open(tmp_path, only, Fp8Format()).open("a.weight", (16, 64))
