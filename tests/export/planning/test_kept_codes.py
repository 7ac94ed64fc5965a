"""A quantised checkpoint's plan: the weights that an export keeps as codes, from config.json and from the tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.checkpoint.config import ModelConfig, parse_config
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.planning.exact_artifact import formats_at_hand, source_facts, with_exact_artifact
from qwonnx.export.planning.plan import Assumptions, store_models
from qwonnx.export.planning.resident_memory import Serving
from qwonnx.export.planning.source import open_source
from qwonnx.export.planning.stored_model import StoredModel, named_recipe
from qwonnx.export.quantization.recipe import WeightStorage
from qwonnx.export.targets.register import choose_target
from tests.checkpoints import write_tiny
from tests.checkpoints.every_format import write_format
from tests.checkpoints.published import PUBLISHED
from tests.checkpoints.quantized_formats import write_gptq

ASSUMPTIONS = Assumptions(choose_target(), Serving(4096, 1, KvType.FLOAT32, 512, 2), None)
OFFICIAL: dict[str, Any] = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 128,
    "sym": True,
    "desc_act": False,
    "dynamic": {"lm_head": {}, "-:.*attn.*": {}, "-:.*shared_expert.*": {}, "-:.*mtp.*": {}, "-:.*visual.*": {}},
}


def stored_in(model: StoredModel) -> dict[str, WeightStorage]:
    return {name: item.storage for item in model.weights for name in item.weight_names}


def published(quantization: dict[str, Any]) -> ModelConfig:
    return parse_config({**PUBLISHED["35B-A3B"].config(), "quantization_config": quantization})


def test_the_official_files_keep_their_experts_under_every_recipe(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["35B-A3B"].config()))
    copied = open_source(str(tmp_path)).copied
    recipes = [named_recipe(name) for name in ("int8", "best")]
    models, notes = store_models(published(OFFICIAL), recipes, ASSUMPTIONS, copied)
    assert notes == ["weights that config.json calls gptq-int4 keep their codes in every recipe"]
    plain, _ = store_models(parse_config(PUBLISHED["35B-A3B"].config()), recipes, ASSUMPTIONS, copied)
    for model, other in zip(models, plain, strict=True):
        expected = {
            name: WeightStorage(4, 128) if ".mlp.experts." in name else storage
            for name, storage in stored_in(other).items()
        }
        assert stored_in(model) == expected


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ({"-:(.*attn)+": {}}, "(.*attn)+"),
        ({f"-:model.layers.{number}": {} for number in range(5000)}, "has 5000 rules"),
    ],
    ids=["unreadable", "many"],
)
def test_rules_that_cannot_be_followed_are_noted_and_the_recipe_decides(
    tmp_path: Path, rules: dict[str, Any], named: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["35B-A3B"].config()))
    copied = open_source(str(tmp_path)).copied
    odd = {**OFFICIAL, "dynamic": rules}
    (model,), (note,) = store_models(published(odd), [named_recipe("int8")], ASSUMPTIONS, copied)
    assert {storage.bits for storage in stored_in(model).values()} == {8, 16, 32}
    assert "cannot be foreseen" in note
    assert named in note


@pytest.mark.parametrize(("group_size", "symmetric"), [(32, True), (128, False)])
def test_an_export_has_the_planned_size_to_the_byte(tmp_path: Path, group_size: int, symmetric: bool) -> None:
    write_tiny(
        tmp_path / "float", fused_experts=False, text_overrides={"hidden_size": 128, "moe_intermediate_size": 64}
    )
    write_gptq(
        tmp_path / "float",
        tmp_path / "checkpoint",
        tmp_path / "exact",
        pattern=r"mlp\.experts\.\d+\.(gate|up|down)_proj\.weight$",
        group_size=group_size,
        symmetric=symmetric,
        settings={"dynamic": {"-:.*attn.*": {}, "-:.*shared_expert.*": {}}},
    )
    named = named_recipe("balanced")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "artifact", ExportOptions(recipe=named.recipe))
    measured = {path.name: path.stat().st_size for path in (tmp_path / "artifact").iterdir()}
    source = open_source(str(tmp_path / "checkpoint"))
    (foreseen,), _ = store_models(source.config, [named], ASSUMPTIONS, source.copied)
    for file in foreseen.layout.files:
        assert measured[file.path] == file.num_bytes
    (model,), _ = store_models(source.config, [named], ASSUMPTIONS, source.copied, formats_at_hand(source))
    made = with_exact_artifact(
        source.config,
        model,
        source.copied,
        source_facts(source),
        choose_target(),
    )
    assert {file.path: file.num_bytes for file in made.artifact.files} == measured


def test_tensors_at_hand_tell_what_rules_conceal(tmp_path: Path) -> None:
    write_tiny(tmp_path / "float", fused_experts=False)
    write_gptq(tmp_path / "float", tmp_path / "checkpoint", tmp_path / "exact", group_size=32, settings={"dynamic": {}})
    source, named = open_source(str(tmp_path / "checkpoint")), named_recipe("int8")
    (foreseen,), _ = store_models(source.config, [named], ASSUMPTIONS, source.copied)
    (known,), _ = store_models(source.config, [named], ASSUMPTIONS, source.copied, formats_at_hand(source))
    assert stored_in(foreseen)["layers.0.linear_attn.out_proj.weight"].bits == 4
    assert stored_in(known)["layers.0.linear_attn.out_proj.weight"].bits == 8


@pytest.mark.parametrize(
    "name", ["w4a16-asymmetric", "w8a16", "w8a8", "awq", "auto-round-awq", "nvfp4", "gptq-desc-act"]
)
def test_the_rules_of_other_formats_foresee_what_their_tensors_say(tmp_path: Path, name: str) -> None:
    layers = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    write_tiny(tmp_path / "float", fused_experts=False, text_overrides=layers)
    write_format(tmp_path / "float", tmp_path / "checkpoint", name)
    source, recipe = open_source(str(tmp_path / "checkpoint")), named_recipe("balanced")
    (foreseen,), _ = store_models(source.config, [recipe], ASSUMPTIONS, source.copied)
    (known,), _ = store_models(source.config, [recipe], ASSUMPTIONS, source.copied, formats_at_hand(source))
    assert stored_in(foreseen) == stored_in(known)
