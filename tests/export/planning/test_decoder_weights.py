"""The list of weights is the graph's: the same weights, joined and stored alike, in the same order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qwonnx.export.errors import RecipeError
from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.planning.decoder_weights import decoder_weights, stored_weights
from qwonnx.export.planning.stored_model import named_recipes
from qwonnx.export.quantization.recipe import Recipe, Rule
from qwonnx.export.targets.lowered_decoder import lower_decoder
from qwonnx.export.weight_files.weight_item import WeightItem
from tests.export.planning.conftest import MODELS, Traced

# A recipe with a rule of every kind that decides what may be joined.
MIXED = Recipe(
    "int4",
    64,
    (Rule("*.v_proj.weight", 8), Rule("*.in_proj_z.weight", 32), Rule("*.shared_expert.up_proj.weight", 4, 32)),
)
RECIPES = [*(named.recipe for named in named_recipes()), MIXED]


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_are_those_that_the_modules_register(traced: Callable[[str], Traced], name: str) -> None:
    made = traced(name)
    tied = made.config.tie_word_embeddings
    registered = GraphWeights.of_traced(made.model.clone().graph, MIXED, tie_word_embeddings=tied)
    listed = {weight.name: ((weight.name, weight.shape),) for weight in decoder_weights(made.config)}
    assert list(registered.parts.items()) == list(listed.items())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("target", "int8_activations"), [("cpu", True), ("cpu", False), ("portable", False)])
def test_they_are_stored_and_joined_as_a_lowered_graph_stores_and_joins_them(
    traced: Callable[[str], Traced], name: str, target: str, int8_activations: bool
) -> None:
    made = traced(name)
    for recipe in RECIPES:
        if recipe is MIXED and name.endswith("-tied"):
            continue
        items = _items(made, recipe, target, int8_activations)
        planned = stored_weights(made.config, recipe, target=target, int8_activations=int8_activations)
        assert [(item.weights, item.storage) for item in items] == [
            (weight.weights, weight.storage) for weight in planned
        ]


def test_experts_of_which_half_is_quantised_are_refused_as_the_lowering_refuses_them(
    traced: Callable[[str], Traced],
) -> None:
    made = traced("tiny-moe")
    recipe = Recipe("int4", 64, (Rule("*.experts.down_proj", 32),))
    with pytest.raises(RecipeError) as lowered:
        _items(made, recipe, "cpu", True)
    with pytest.raises(RecipeError) as planned:
        stored_weights(made.config, recipe, target="cpu", int8_activations=True)
    assert str(planned.value) == str(lowered.value)


def _items(made: Traced, recipe: Recipe, target: str, int8_activations: bool) -> list[WeightItem]:
    lowered = lower_decoder(made.model.clone(), recipe, made.config, target=target, int8_activations=int8_activations)
    return lowered.weights.items()
