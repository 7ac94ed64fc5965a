"""Merging stays within what the account of the weight stage counts for it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from torch import nn

from qwonnx.export.adapters.adapted_checkpoint import resolve_adapted
from qwonnx.export.quantization.importance import Importance
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.export.weight_files.weight_slices import WeightSlice
from qwonnx.export.weight_files.weight_stage import encode
from tests.export.adapters.test_bases import as_peft_0_18
from tests.export.adapters.trained import LINEAR, PARAMETERS, edit_tensors, load, train, write_base
from tests.export.weight_files.peak_memory import peak_bytes

SHAPES = {
    "embed_tokens.weight": (1280, 128),
    "layers.1.self_attn.q_proj.weight": (256, 128),
    "layers.0.mlp.experts.gate_up_proj": (6, 96, 128),
    "layers.0.mlp.experts.down_proj": (6, 128, 48),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "base", dtype="BF16")


@pytest.fixture(scope="module")
def model(base: Path) -> nn.Module:
    return load(base)


@pytest.mark.parametrize("weights", ["int4", "fp32"])
@pytest.mark.parametrize("kind", ["lora", "dora", "peft 0.18"])
def test_a_slice_takes_no_more_memory_than_the_account_says(
    base: Path, model: nn.Module, tmp_path: Path, weights: str, kind: str
) -> None:
    is_dora = kind == "dora"
    adapter = train(
        model,
        tmp_path / "adapter",
        r=16,
        use_dora=is_dora,
        target_modules=[*LINEAR, "embed_tokens"],
        target_parameters=[] if is_dora else PARAMETERS,
    ).folder
    if kind == "peft 0.18":
        edit_tensors(adapter, as_peft_0_18)
    source = resolve_adapted(str(base), None, None, [adapter]).source()
    for name, shape in SHAPES.items():
        reader, storage = source.rows(name, shape), Recipe.preset(weights, 16).storage(name, shape)
        for start, count in ((0, reader.num_rows), (33, 5)):
            part = WeightSlice(0, storage, reader, start, count, 0, reader.num_columns)
            assert 0 < peak_bytes(partial(encode, Importance({}), part)) <= part.making_bytes, name
