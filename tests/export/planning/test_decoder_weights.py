"""The list of weights is the graph's: the same weights, joined and stored alike, in the same order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from qwonnx.export.checkpoint.config import parse_config
from qwonnx.export.checkpoint.formats.codes import StoredCodes
from qwonnx.export.checkpoint.weight_names import tied_weights
from qwonnx.export.checkpoint.weight_part import WeightPart
from qwonnx.export.errors import RecipeError
from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.modeling.trace import decoder_weights
from qwonnx.export.planning.decoder_weights import planned_shapes, planned_weights
from qwonnx.export.planning.stored_model import named_recipes
from qwonnx.export.quantization.recipe import BFLOAT16, Recipe, Rule, Storages
from qwonnx.export.quantization.storage_plan import StoragePlan
from qwonnx.export.targets.lowered_graph import lower_decoder
from qwonnx.export.targets.register import choose_target
from qwonnx.export.targets.target import TargetChoice
from qwonnx.export.weight_files.weight_item import WeightItem
from tests.checkpoints.published import PUBLISHED
from tests.export.planning.conftest import MODELS, Traced

# A recipe with a rule of every kind that decides what may be joined.
MIXED = Recipe(
    "int4",
    64,
    (Rule("*.v_proj.weight", 8), Rule("*.in_proj_z.weight", 32), Rule("*.shared_expert.up_proj.weight", 4, 32)),
)
Items = tuple[WeightItem, ...]
RECIPES = [*(named.recipe for named in named_recipes()), MIXED]


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_are_those_that_the_modules_register(traced: Callable[[str], Traced], name: str) -> None:
    made = traced(name)
    registered = GraphWeights.of_traced(made.model.clone().graph, MIXED, tied_weights(made.config))
    listed = {name: (WeightPart(name, shape),) for name, shape in planned_shapes(made.config).items()}
    assert list(registered.parts.items()) == list(listed.items())


@pytest.mark.parametrize("size", PUBLISHED)
def test_they_are_those_of_every_published_configuration(size: str) -> None:
    config = parse_config(PUBLISHED[size].config())
    registered = {name: shape for name, shape in decoder_weights(config).items() if name not in tied_weights(config)}
    assert list(planned_shapes(config).items()) == list(registered.items())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("target", "activations"), [("cpu", "int8"), ("cpu", "float32"), ("portable", "float32"), ("cuda", "float16")]
)
def test_they_are_stored_and_joined_as_a_lowered_graph_stores_and_joins_them(
    traced: Callable[[str], Traced], name: str, target: str, activations: str
) -> None:
    made = traced(name)
    for recipe in RECIPES:
        if recipe is MIXED and name.endswith("-tied"):
            continue
        storages = StoragePlan(recipe, _StoredAsFloats("A_log", ".mlp.gate."))
        choice = choose_target(target, activations)
        items = _or_refusal(partial(_items, made, storages, choice))
        assert _or_refusal(partial(planned_weights, made.config, storages, choice)) == items


@pytest.mark.parametrize("wide", [(), (".in_proj_a.",), (".shared_expert_gate.",), ("",)])
def test_a_fused_operator_keeps_the_checkpoints_bfloat16_unless_a_part_is_wider(
    traced: Callable[[str], Traced], wide: tuple[str, ...]
) -> None:
    made = traced("tiny-moe")
    storages = StoragePlan(Recipe.preset("int4"), _StoredAsFloats(*wide))
    items = _items(made, storages, choose_target())
    assert items == planned_weights(made.config, storages, choose_target())
    kept = {name for item in items if item.storage == BFLOAT16 for name in item.weight_names}
    pairs = {
        "layers.0.linear_attn.in_proj_": ("b.weight", "a.weight"),
        **{f"layers.{layer}.mlp.": ("gate.weight", "shared_expert_gate.weight") for layer in range(2)},
    }
    names = [[prefix + name for name in parts] for prefix, parts in pairs.items()]
    assert kept == {name for pair in names if not any(part in each for part in wide for each in pair) for name in pair}


class _StoredAsFloats:
    """A checkpoint without codes: in float32 are the weights whose names contain one of some texts."""

    def __init__(self, *wide: str) -> None:
        self._wide = wide

    def stored_codes(self, name: str, shape: tuple[int, ...]) -> frozenset[StoredCodes | None]:
        return frozenset((None,))

    def is_bfloat16(self, name: str, shape: tuple[int, ...]) -> bool:
        return not any(part in name for part in self._wide)


def test_experts_of_which_half_is_quantised_are_refused_as_the_lowering_refuses_them(
    traced: Callable[[str], Traced],
) -> None:
    made = traced("tiny-moe")
    recipe = Recipe("int4", 64, (Rule("*.experts.down_proj", 32),))
    with pytest.raises(RecipeError) as lowered:
        _items(made, recipe, choose_target())
    with pytest.raises(RecipeError) as planned:
        planned_weights(made.config, recipe, choose_target())
    assert str(planned.value) == str(lowered.value)


def _or_refusal(make: Callable[[], Items]) -> Items | str:
    """What is made, or why nothing is."""
    try:
        return make()
    except RecipeError as error:
        return str(error)


def _items(made: Traced, storages: Storages, choice: TargetChoice) -> Items:
    return tuple(lower_decoder(made.model.clone(), storages, made.config, choice).weights.items())
