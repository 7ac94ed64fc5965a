"""Sizes of artifacts: weights and, once traced, everything to the byte; close enough from config.json alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.planning.artifact_size import CopiedFiles
from qwonnx.export.planning.exact_artifact import source_facts, with_exact_artifact
from qwonnx.export.planning.source import PlanSource, open_source
from qwonnx.export.planning.stored_model import NamedRecipe, StoredModel, named_recipe, named_recipes, store_model
from qwonnx.export.quantization.recipe import Recipe, Rule
from qwonnx.export.targets.register import choose_target
from qwonnx.export.targets.target import TargetChoice
from qwonnx.runtime.artifact.folder import Artifact
from tests.checkpoints import write_tiny
from tests.checkpoints.config_json import HEADS_OF_64


def files_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def planned(source: PlanSource, named: NamedRecipe, choice: TargetChoice) -> StoredModel:
    return store_model(source.config, named, source.copied, choice)


def exact(source: PlanSource, model: StoredModel, choice: TargetChoice) -> dict[str, int]:
    made = with_exact_artifact(
        source.config,
        model,
        source.copied,
        source_facts(source),
        choice,
    )
    assert made.artifact.is_exact
    return {file.path: file.num_bytes for file in made.artifact.files}


# The targets differ in their graph, not in what a recipe makes of a tensor.
RECIPES = [named.name for named in named_recipes()]
CASES = [pytest.param(name, "cpu") for name in RECIPES] + [
    pytest.param(name, "portable", marks=() if name == "int4" else pytest.mark.soak) for name in RECIPES
]


@pytest.mark.parametrize(("weights", "target"), CASES)
def test_every_recipe_and_target_is_planned_to_the_byte_but_for_graph_and_manifest(
    tiny_checkpoint: Path, export_tiny: Callable[[ExportOptions], Artifact], weights: str, target: str
) -> None:
    named = named_recipe(weights)
    measured = files_of(export_tiny(ExportOptions(target=target, recipe=named.recipe)).folder)
    model = planned(open_source(str(tiny_checkpoint)), named, choose_target(target))
    estimated = {file.path: file.num_bytes for file in model.artifact.files}
    assert estimated.keys() == measured.keys()
    for name in measured.keys() - {"decoder.onnx", "manifest.json"}:
        assert estimated[name] == measured[name], name
    assert not model.artifact.is_exact
    assert model.artifact.num_bytes == pytest.approx(sum(measured.values()), rel=0.01)


@pytest.mark.parametrize(
    "options",
    [
        ExportOptions(recipe=named_recipe("balanced").recipe),
        ExportOptions(recipe=named_recipe("int8").recipe, target="portable"),
        ExportOptions(recipe=named_recipe("int4").recipe, kv="int8"),
    ],
)
def test_a_traced_plan_is_the_artifact_to_the_byte(
    tiny_checkpoint: Path, export_tiny: Callable[[ExportOptions], Artifact], options: ExportOptions
) -> None:
    source = open_source(str(tiny_checkpoint))
    assert options.recipe is not None
    choice = choose_target(options.target, options.activations, options.kv)
    model = planned(source, NamedRecipe("any", options.recipe, ""), choice)
    assert exact(source, model, choice) == files_of(export_tiny(options).folder)


@pytest.mark.parametrize("kv", ["float16", "int8"])
def test_a_plan_for_cuda_is_the_artifact_to_the_byte(tmp_path: Path, kv: str) -> None:
    layers = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    checkpoint = write_tiny(tmp_path / "tiny", text_overrides={**HEADS_OF_64, **layers})
    named, choice = named_recipe("cuda"), choose_target("cuda", kv=kv)
    export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(target="cuda", recipe=named.recipe, kv=kv))
    source, measured = open_source(str(checkpoint)), files_of(tmp_path / "out")
    model = planned(source, named, choice)
    assert exact(source, model, choice) == measured
    assert model.artifact.num_bytes == pytest.approx(sum(measured.values()), rel=0.01)


def test_tied_dense_checkpoints_and_recipes_with_rules_are_planned_to_the_byte(tmp_path: Path) -> None:
    checkpoint = write_tiny(
        tmp_path / "checkpoint",
        architecture="Qwen3_5ForCausalLM",
        tie_word_embeddings=True,
        text_overrides={"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
    )
    recipe = Recipe("int4", 32, (Rule("*.v_proj.weight", 8), Rule("embed_tokens.weight", 4)))
    options = ExportOptions(recipe=recipe, activations="float32")
    export_checkpoint(checkpoint, tmp_path / "artifact", options)
    source = open_source(str(checkpoint))
    choice = choose_target(options.target, options.activations)
    model = planned(source, NamedRecipe("mine", recipe, ""), choice)
    assert exact(source, model, choice) == files_of(tmp_path / "artifact")


@pytest.mark.parametrize("weights", [named.name for named in named_recipes()])
def test_a_config_alone_is_within_a_twentieth_of_the_artifact(
    tiny_checkpoint: Path, tmp_path: Path, export_tiny: Callable[[ExportOptions], Artifact], weights: str
) -> None:
    config = tmp_path / "config.json"
    config.write_text((tiny_checkpoint / "config.json").read_text())
    for place in (str(config), str(tmp_path)):
        named = named_recipe(weights)
        model = planned(open_source(place), named, choose_target())
        measured = sum(files_of(export_tiny(ExportOptions(recipe=named.recipe)).folder).values())
        assert model.artifact.num_bytes == pytest.approx(measured, rel=0.05)


def test_the_groups_are_those_of_the_manifest(
    tiny_checkpoint: Path, export_tiny: Callable[[ExportOptions], Artifact]
) -> None:
    named = named_recipe("balanced")
    model = planned(open_source(str(tiny_checkpoint)), named, choose_target())
    manifest = export_tiny(ExportOptions(recipe=named.recipe)).manifest
    assert model.groups == manifest.quantization.groups
    assert model.num_parameters == manifest.model.num_parameters
    assert model.num_bytes == sum(group.num_bytes for group in manifest.quantization.groups)


def test_copied_files_are_looked_up_where_they_are(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copied = CopiedFiles.of_folder(tiny_checkpoint)
    assert copied is not None
    names = {"tokenizer.json", "vocabulary.bin", "chat_template.jinja", "generation_config.json"}
    assert {file.path for file in copied.files} == names
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert CopiedFiles.of_folder(tmp_path) is None
