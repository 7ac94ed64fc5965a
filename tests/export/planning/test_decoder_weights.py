"""The list of weights is the graph's: the same weights, joined and stored alike, in the same order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qwonnx.export.checkpoint.config import parse_config
from qwonnx.export.checkpoint.weight_names import tied_weights
from qwonnx.export.errors import RecipeError
from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.modeling.trace import decoder_weights
from qwonnx.export.planning.decoder_weights import planned_shapes, planned_weights
from qwonnx.export.planning.stored_model import named_recipes
from qwonnx.export.quantization.recipe import Recipe, Rule
from qwonnx.export.targets.lowered_graph import lower_decoder
from qwonnx.export.targets.register import choose_target
from qwonnx.export.weight_files.weight_item import WeightItem
from tests.checkpoints.published import PUBLISHED
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
    registered = GraphWeights.of_traced(made.model.clone().graph, MIXED, tied_weights(made.config))
    listed = {name: ((name, shape),) for name, shape in planned_shapes(made.config).items()}
    assert list(registered.parts.items()) == list(listed.items())


@pytest.mark.parametrize("size", PUBLISHED)
def test_they_are_those_of_every_published_configuration(size: str) -> None:
    config = parse_config(PUBLISHED[size].config())
    registered = {name: shape for name, shape in decoder_weights(config).items() if name not in tied_weights(config)}
    assert list(planned_shapes(config).items()) == list(registered.items())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("target", "activations"), [("cpu", "int8"), ("cpu", "float32"), ("portable", "float32")])
def test_they_are_stored_and_joined_as_a_lowered_graph_stores_and_joins_them(
    traced: Callable[[str], Traced], name: str, target: str, activations: str
) -> None:
    made = traced(name)
    for recipe in RECIPES:
        if recipe is MIXED and name.endswith("-tied"):
            continue
        items = _items(made, recipe, target, activations)
        planned = planned_weights(made.config, recipe, choose_target(target, activations))
        assert items == list(planned)


def test_experts_of_which_half_is_quantised_are_refused_as_the_lowering_refuses_them(
    traced: Callable[[str], Traced],
) -> None:
    made = traced("tiny-moe")
    recipe = Recipe("int4", 64, (Rule("*.experts.down_proj", 32),))
    with pytest.raises(RecipeError) as lowered:
        _items(made, recipe, "cpu", "int8")
    with pytest.raises(RecipeError) as planned:
        planned_weights(made.config, recipe, choose_target())
    assert str(planned.value) == str(lowered.value)


def _items(made: Traced, recipe: Recipe, target: str, activations: str) -> list[WeightItem]:
    lowered = lower_decoder(made.model.clone(), recipe, made.config, choose_target(target, activations))
    return lowered.weights.items()
