"""compressed-tensors: which group a module belongs to, permuted groups, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.formats.codes import StoredCodes
from qwonnx.export.checkpoint.formats.compressed_tensors import CompressedFormat
from qwonnx.export.checkpoint.formats.source_quantization import parse_quantization
from qwonnx.export.checkpoint.formats.stored_weights import StoredWeights, loss_of
from qwonnx.export.errors import CheckpointError, ConfigError, TensorFormatError
from tests.checkpoints.every_format import compressed
from tests.checkpoints.quantized_formats import Stored, write_tensors
from tests.checkpoints.row_formats import float8_matrix, nvfp4_matrix, packed_matrix

pytestmark = pytest.mark.fast

Json = dict[str, Any]

LAYER = "model.language_model.layers.0."
VALUES = np.random.default_rng(5).standard_normal((48, 192)).astype(np.float32)
INT4, INT8 = {"num_bits": 4, "group_size": 32}, {"num_bits": 8, "strategy": "channel", "group_size": None}
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel"}
NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}


def of_groups(*groups: tuple[list[str], Json], form: str = "pack-quantized", **fields: Any) -> Json:
    """A quantization_config of groups of targets, each with its weights."""
    config = compressed(form, group_size=32)
    base = config["config_groups"]["group_0"]
    config["config_groups"] = {
        f"group_{number}": {**base, "targets": targets, "weights": {**base["weights"], **weights}}
        for number, (targets, weights) in enumerate(groups)
    }
    return {**config, **fields}


def parse(config: Json) -> CompressedFormat:
    parsed = parse_quantization({"quantization_config": config}, {}, "config.json")
    assert isinstance(parsed, CompressedFormat)
    return parsed


def opened(folder: Path, stored: dict[str, Stored], config: Json) -> StoredWeights:
    write_tensors(folder / "model.safetensors", stored)
    return StoredWeights(Checkpoint.open(folder), parse(config))


def test_modules_of_several_groups_have_the_schemes_of_their_tensors(tmp_path: Path) -> None:
    matrices = {
        "a": packed_matrix("a", VALUES, 4, 32),
        "b": packed_matrix("b", VALUES, 8, -1),
        "c": packed_matrix("c", VALUES, 4, 64, symmetric=False),
        "d": float8_matrix("d.weight", VALUES),
        "e": nvfp4_matrix("e", VALUES),
    }
    config = of_groups(
        (["Linear"], INT4),
        (["re:.*b$"], INT8),
        (["c"], {"num_bits": 4, "group_size": 64, "symmetric": False}),
        (["re:d"], FLOAT8),
        (["e"], NVFP4),
        form="mixed-precision",
    )
    stored = opened(tmp_path, {n: t for matrix in matrices.values() for n, t in matrix.stored.items()}, config)
    assert parse(config).name == "compressed-tensors-int4+int8+fp8+nvfp4"
    for module, matrix in matrices.items():
        weight = stored.open(f"{module}.weight", (48, 192))
        assert torch.equal(weight.read(0, 48), torch.tensor(matrix.meaning)), module
    assert stored.open("b.weight", (48, 192)).codes == StoredCodes(8, 192, has_zero_points=False)
    assert stored.open("c.weight", (48, 192)).codes == StoredCodes(4, 64, has_zero_points=True)


def test_targets_decide_where_several_schemes_fit_the_tensors(tmp_path: Path) -> None:
    narrow = VALUES[:, :64]  # one group of 64 or of 96 input features, or a whole row
    sizes = ((["Linear"], {"group_size": 96}), (["re:.*down_proj$"], {"group_size": 64}), (["x.up_proj"], {**INT4}))
    config = of_groups(*sizes)
    stored = opened(tmp_path, packed_matrix("x.down_proj", narrow, 4, 64).stored, config)
    weight = stored.open("x.down_proj.weight", (48, 64))
    assert weight.codes == StoredCodes(4, 64, has_zero_points=False)
    parsed = parse(config)
    for module, size in (("x.up_proj", 32), ("x.down_proj", 64), ("x.gate_proj", 96)):
        assert parsed.foreseen_codes(module, 192) == StoredCodes(4, size, has_zero_points=False)


def test_a_pattern_that_may_take_long_is_tried_only_where_it_matters(tmp_path: Path) -> None:
    slow = of_groups((["re:(a+)+b"], {"group_size": 96}), (["re:(a+)+c"], {"group_size": 64}))
    stored = opened(tmp_path, packed_matrix("a", VALUES, 4, 64).stored, slow)
    assert stored.open("a.weight", (48, 192)).codes == StoredCodes(4, 64, has_zero_points=False)
    with pytest.raises(ConfigError, match="more than names"):
        parse(slow).foreseen_codes("a", 192)
    both = opened(tmp_path, packed_matrix("a", VALUES[:, :64], 4, 64).stored, slow)
    with pytest.raises(ConfigError, match="more than names"):
        both.open("a.weight", (48, 64))


def test_ignored_modules_are_foreseen_as_floats() -> None:
    parsed = parse(of_groups((["Linear"], INT4), ignore=["lm_head", "re:.*mlp.gate$", f"{LAYER}mlp.up_proj"]))
    assert parsed.has_codes
    for module, codes in (
        ("lm_head", None),
        (f"{LAYER}mlp.gate", None),
        (f"{LAYER}mlp.up_proj", None),
        (f"{LAYER}mlp.gate_proj", StoredCodes(4, 32, has_zero_points=False)),
    ):
        assert parsed.foreseen_codes(module, 192) == codes
    assert not parse(of_groups((["Linear"], FLOAT8))).has_codes
    assert parse(of_groups((["re:.*experts.*"], INT4))).foreseen_codes(f"{LAYER}mlp.up_proj", 192) is None


def test_groups_of_permuted_features_are_decoded(tmp_path: Path) -> None:
    groups = np.random.default_rng(1).permutation(np.arange(192) // 32).astype(np.int32)
    config = of_groups((["Linear"], {**INT4, "actorder": "group"}))
    for symmetric in (True, False):
        matrix = packed_matrix("a", VALUES, 4, 32, symmetric, groups=groups)
        config["config_groups"]["group_0"]["weights"]["symmetric"] = symmetric
        weight = opened(tmp_path, matrix.stored, config).open("a.weight", (48, 192))
        assert weight.codes is None
        assert "desc_act" in (loss_of(weight) or "")
        assert torch.equal(weight.read(7, 30), torch.tensor(matrix.meaning[7:37]))
    in_order = packed_matrix("a", VALUES, 4, 32, False, groups=np.arange(192) // 32)
    kept = opened(tmp_path, in_order.stored, config).open("a.weight", (48, 192))
    assert kept.codes == StoredCodes(4, 32, has_zero_points=True)
    beyond = packed_matrix("a", VALUES, 4, 32, False, groups=groups).stored
    beyond["a.weight_g_idx"] = Stored("I32", (192,), np.full(192, 9, np.int32).tobytes())
    with pytest.raises(TensorFormatError, match="names groups beyond 6"):
        opened(tmp_path, beyond, config).open("a.weight", (48, 192))


@pytest.mark.parametrize("shape", [(50, 100), (7, 16), (33, 48)], ids=str)
def test_sizes_that_words_do_not_divide_are_read(tmp_path: Path, shape: tuple[int, int]) -> None:
    for bits in (4, 8):
        matrix = packed_matrix("a", VALUES[:1].repeat(shape[0], 0)[:, : shape[1]], bits, -1, symmetric=False)
        config = of_groups((["Linear"], {"num_bits": bits, "strategy": "channel", "symmetric": False}))
        weight = opened(tmp_path, matrix.stored, config).open("a.weight", shape)
        assert torch.equal(weight.read(0, shape[0]), torch.tensor(matrix.meaning))
        assert torch.equal(weight.read(3, 4), torch.tensor(matrix.meaning[3:7]))


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("weight_scale", "no a.weight_scale of shape [48, 6]"),
        ("weight_shape", "no a.weight_shape of shape [2]"),
        ("weight_zero_point", "do not have the shapes of any group of config_groups"),
    ],
)
def test_a_module_that_lacks_a_tensor_is_refused(tmp_path: Path, lost: str, named: str) -> None:
    stored = packed_matrix("a", VALUES, 4, 32, symmetric=False).stored
    del stored[f"a.{lost}"]
    weights = opened(tmp_path, stored, of_groups((["Linear"], {**INT4, "symmetric": False})))
    with pytest.raises(CheckpointError) as caught:
        weights.open("a.weight", weights.shape("a.weight"))
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (of_groups((["Linear"], {"num_bits": 3})), "num_bits 3 of compressed-tensors is not supported, only 4, 8"),
        (of_groups((["Linear"], {"strategy": "block"})), "strategy 'block' of compressed-tensors"),
        (
            of_groups((["Linear"], {"strategy": "tensor", "symmetric": False})),
            "strategy 'tensor' of compressed-tensors",
        ),
        (of_groups((["Linear"], {**NVFP4, "group_size": 32})), "4-bit floats of compressed-tensors in groups of 32"),
        (of_groups((["Linear"], {**FLOAT8, "symmetric": False})), "not symmetric, of compressed-tensors"),
        (
            of_groups((["Linear"], {**FLOAT8, "strategy": "block", "block_structure": [64, 128]})),
            "block_structure [64, 128] of compressed-tensors",
        ),
        (of_groups((["Linear"], {"type": "complex"})), "weights of type 'complex'"),
        (of_groups((["Linear"], {"dynamic": True})), "dynamic 'True' of compressed-tensors"),
        (of_groups((["Linear"], {"rotation": 1})), "the field 'rotation' of compressed-tensors"),
        (of_groups((["Linear"], INT4), form="mxfp8-quantized"), "format 'mxfp8-quantized' of compressed-tensors"),
        (of_groups((["Linear"], INT4), quantization_status="calibration"), "quantization_status 'calibration'"),
        (of_groups((["Linear"], INT4), transform_config={"a": 1}), "the field 'transform_config'"),
        (of_groups((["Linear"], INT4), sparsity_config={"format": "marlin-24"}), "sparsity_config"),
        (of_groups((["Linear"], INT4), ignore="lm_head"), "ignore is 'lm_head' and must be a list of names"),
        (of_groups(), "config_groups has no scheme of weights"),
        ({**of_groups(), "config_groups": {"W4A16": ["Linear"]}}, "must be an object of groups"),
    ],
)
def test_what_may_change_the_weights_is_refused(config: Json, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(config)
    message = str(caught.value)
    assert named in message
    assert "\n" not in message
    assert message.startswith("config.json: quantization_config")
