"""Weights as their writers' own libraries quantise and decode them; skipped where a library is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.formats.source_quantization import parse_quantization
from qwonnx.export.checkpoint.formats.stored_weights import StoredWeights

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]

SHAPE = (192, 256)
SCHEMES = [
    ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}),
    ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 128, "symmetric": False}),
    ("pack-quantized", {"num_bits": 4, "strategy": "channel", "symmetric": False}),
    ("pack-quantized", {"num_bits": 8, "strategy": "channel"}),
    ("pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": 64, "symmetric": False}),
    ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}),
    ("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
]


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def read(folder: Path, tensors: Tensors, config: Config) -> torch.Tensor:
    """What we make of a module's tensors, by their names in the module."""
    save_file({f"m.{name}": tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    stored = StoredWeights(
        Checkpoint.open(folder), parse_quantization({"quantization_config": config}, {}, "config.json")
    )
    assert stored.shape("m.weight") == SHAPE
    return stored.open("m.weight", SHAPE).read(0, SHAPE[0])


@pytest.mark.parametrize(("form", "arguments"), SCHEMES, ids=str)
def test_compressed_tensors_decodes_the_same_values(
    weight: torch.Tensor, tmp_path: Path, form: str, arguments: Config
) -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    utils = pytest.importorskip("compressed_tensors.quantization.utils")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    scheme = quantization.QuantizationScheme(
        targets=["Linear"], weights=quantization.QuantizationArgs(**arguments), format=form
    )
    blocks = {
        "group": weight.view(192, -1, arguments.get("group_size", 1)).permute(2, 0, 1),
        "tensor_group": weight.view(192, -1, arguments.get("group_size", 1)).permute(2, 0, 1),
        "channel": weight.t()[..., None],
        "tensor": weight.reshape(-1, 1),
        "block": torch.nn.functional.pad(weight, (0, 0, 0, 64)).view(2, 128, 2, 128).permute(1, 3, 0, 2).flatten(0, 1),
    }[arguments["strategy"]]
    tensors = {"weight": weight}
    whole = {}
    if arguments["strategy"] == "tensor_group":
        tensors["weight_global_scale"] = utils.generate_gparam(weight.amin(), weight.amax()).view(1)
        whole = {"global_scale": tensors["weight_global_scale"]}
    scales, zero_points = utils.calculate_qparams(blocks.amin(0), blocks.amax(0), scheme.weights, **whole)
    tensors |= {"weight_scale": scales.float(), "weight_zero_point": zero_points}
    compressor = compressors.BaseCompressor.get_value_from_registry(form)
    packed = compressor.compress(tensors, scheme)
    if whole:  # the compressor itself decodes to bfloat16
        helpers = pytest.importorskip("compressed_tensors.compressors.nvfp4.helpers")
        codes = helpers.unpack_fp4_from_uint8(packed["weight_packed"], *SHAPE, dtype=torch.float32)
        spread = (packed["weight_scale"].float() / packed["weight_global_scale"]).repeat_interleave(16, 1)
        expected = codes * spread
    else:
        expected = compressor.decompress(dict(packed), scheme)["weight"]
    config = quantization.QuantizationConfig(config_groups={"group_0": scheme}, format=form, ignore=["lm_head"])
    written = {**json.loads(config.model_dump_json()), "quant_method": "compressed-tensors"}
    written["quantization_status"] = "compressed"
    assert torch.equal(read(tmp_path, packed, written), expected)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16], ids=str)
def test_bitsandbytes_decodes_the_same_values_of_4_bits(
    weight: torch.Tensor, tmp_path: Path, kind: str, nested: bool, storage: torch.dtype
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    codes, state = functional.quantize_4bit(
        weight, blocksize=64, quant_type=kind, compress_statistics=nested, quant_storage=storage
    )
    expected = functional.dequantize_4bit(codes, state)
    stored = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    assert torch.equal(read(tmp_path, {"weight": codes, **stored}, config), expected)


def test_bitsandbytes_decodes_the_same_values_of_8_bits(weight: torch.Tensor, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    codes, largest, _ = functional.int8_vectorwise_quant(weight.half())
    found = read(tmp_path, {"weight": codes, "SCB": largest}, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    torch.testing.assert_close(found, functional.int8_vectorwise_dequant(codes, largest), rtol=3e-7, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_auto_round_packs_as_we_read(weight: torch.Tensor, tmp_path: Path, symmetric: bool) -> None:
    packing = pytest.importorskip("auto_round.export.export_to_awq.utils")
    groups = weight.view(192, -1, 32)
    if symmetric:
        scales, zero_points = groups.abs().amax(-1) / 7.5, torch.full((192, 8), 8.0)
    else:
        low, high = groups.amin(-1), groups.amax(-1)
        scales, zero_points = (high - low) / 15, (-low / ((high - low) / 15)).round()
    scales = scales.half().float()
    codes = ((groups / scales[..., None]).round() + zero_points[..., None]).clamp(0, 15)
    expected = ((codes - zero_points[..., None]) * scales[..., None]).view(SHAPE)
    linear = torch.nn.Linear(256, 192, bias=False)
    linear.weight.data = expected
    packed = packing.WQLinear_GEMM.from_linear(
        linear, 4, 32, scales=scales.t().contiguous(), zeros=zero_points.t().contiguous()
    )
    config = {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4, "group_size": 32}
    found = read(tmp_path, dict(packed.state_dict()), {**config, "sym": symmetric, "data_type": "int"})
    assert torch.equal(found, expected)
