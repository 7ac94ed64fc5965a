"""The storage of weights, from a recipe and from a checkpoint's own codes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.config import load_config
from qwonnx.export.checkpoint.formats.gptq_config import GptqFormat
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.errors import RecipeError
from qwonnx.export.quantization.recipe import FLOAT32, Recipe, Rule, WeightStorage
from qwonnx.export.quantization.storage_plan import StoragePlan
from tests.checkpoints.quantized_formats import Stored, gptq_matrix, write_tensors
from tests.checkpoints.safetensors_files import encode

pytestmark = pytest.mark.fast

EXPERTS = "layers.0.mlp.experts."
GATE_UP, DOWN = f"{EXPERTS}gate_up_proj", f"{EXPERTS}down_proj"
HIDDEN, INNER = 128, 64
SHAPES = {GATE_UP: (2, 2 * INNER, HIDDEN), DOWN: (2, HIDDEN, INNER)}
INT4 = Recipe.preset("int4")


Formats = dict[str, dict[str, Any] | None]


def _plan(tmp_path: Path, tiny_checkpoint: Path, recipe: Recipe, written: GptqFormat, formats: Formats) -> StoragePlan:
    """A plan over two experts whose matrices are stored by the first pattern that they match; None: as floats."""
    stored: dict[str, Stored] = {"model.language_model.embed_tokens.weight": Stored("F32", (1, 1), bytes(4))}
    for expert in range(2):
        for part, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
            module = f"model.language_model.{EXPERTS}{expert}.{part}_proj"
            values = np.random.default_rng(6).standard_normal(shape).astype(np.float32)
            options = next(value for pattern, value in formats.items() if re.search(pattern, module))
            if options is None:
                stored[f"{module}.weight"] = Stored("F32", shape, encode(values, "F32"))
            else:
                stored |= gptq_matrix(module, values, **options).stored
    write_tensors(tmp_path / "model.safetensors", stored)
    config = dataclasses.replace(load_config(tiny_checkpoint), quantization=written)
    return StoragePlan(recipe, WeightSource(Checkpoint.open(tmp_path), config))


def _storages(plan: StoragePlan) -> dict[str, WeightStorage]:
    return {name: plan.storage(name, shape) for name, shape in SHAPES.items()}


SYMMETRIC = GptqFormat((4, 8), (32, 128, None), symmetric=True, may_permute=False)
ASYMMETRIC = dataclasses.replace(SYMMETRIC, symmetric=False)


def test_a_checkpoints_codes_are_kept_whatever_bits_and_blocks_the_recipe_gives(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    for recipe in (INT4, Recipe.preset("int8"), Recipe("int4", 16, (Rule("*", 8),))):
        plan = _plan(tmp_path, tiny_checkpoint, recipe, SYMMETRIC, {"": {"group_size": 32}})
        assert _storages(plan) == dict.fromkeys(SHAPES, WeightStorage(4, 32))


def test_a_rule_of_32_bits_makes_them_floats(tmp_path: Path, tiny_checkpoint: Path) -> None:
    plan = _plan(tmp_path, tiny_checkpoint, Recipe.preset("fp32"), SYMMETRIC, {"": {"group_size": 32}})
    assert _storages(plan) == dict.fromkeys(SHAPES, FLOAT32)


def test_weights_that_the_checkpoint_has_as_floats_follow_the_recipe(tmp_path: Path, tiny_checkpoint: Path) -> None:
    plan = _plan(tmp_path, tiny_checkpoint, Recipe.preset("int8", 32), SYMMETRIC, {"": None})
    assert _storages(plan) == dict.fromkeys(SHAPES, WeightStorage(8, 32))


def test_both_matrices_of_a_layers_experts_get_the_smaller_block(tmp_path: Path, tiny_checkpoint: Path) -> None:
    # Whole rows of 64 and groups of 128: 64 fits both. Then one matrix with groups of 32 beside one of the recipe's.
    plan = _plan(tmp_path, tiny_checkpoint, INT4, SYMMETRIC, {"down": {"group_size": -1}, "": {"group_size": 128}})
    assert _storages(plan) == dict.fromkeys(SHAPES, WeightStorage(4, 64))
    plan = _plan(tmp_path, tiny_checkpoint, INT4, SYMMETRIC, {"down": {"group_size": 32}, "": None})
    assert _storages(plan) == dict.fromkeys(SHAPES, WeightStorage(4, 32))


def test_both_matrices_have_zero_points_or_neither(tmp_path: Path, tiny_checkpoint: Path) -> None:
    formats: Formats = {"down": None, "": {"group_size": 32, "bits": 8, "symmetric": False}}
    plan = _plan(tmp_path, tiny_checkpoint, INT4, ASYMMETRIC, formats)
    assert _storages(plan) == {
        GATE_UP: WeightStorage(8, 32, has_zero_points=True),
        DOWN: WeightStorage(4, 32, has_zero_points=True),
    }


@pytest.mark.parametrize(
    "formats",
    [
        {"experts.1.up": None, "": {"group_size": 32}},
        {"experts.1": {"group_size": 32}, "": {"group_size": 128}},
        {"gate": {"bits": 8, "group_size": 32}, "": {"bits": 4, "group_size": 32}},
    ],
    ids=str,
)
def test_experts_that_are_stored_differently_are_refused_unless_they_become_floats(
    tmp_path: Path, tiny_checkpoint: Path, formats: Formats
) -> None:
    plan = _plan(tmp_path, tiny_checkpoint, INT4, SYMMETRIC, formats)
    with pytest.raises(RecipeError, match=r"gate_up_proj is stored in several ways.*: give it 32 bits by a rule"):
        plan.storage(GATE_UP, SHAPES[GATE_UP])
    as_floats = _plan(tmp_path, tiny_checkpoint, Recipe.preset("fp32"), SYMMETRIC, formats)
    assert as_floats.storage(GATE_UP, SHAPES[GATE_UP]) == FLOAT32
