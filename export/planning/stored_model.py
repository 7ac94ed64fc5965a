"""A model under a recipe: its weights, their files, its artifact, and its memory when it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_names import tied_weights
from qwonnx.export.errors import RecipeError
from qwonnx.export.planning.artifact_size import ArtifactSize, CopiedFiles, estimate_artifact
from qwonnx.export.planning.decoder_weights import planned_weights
from qwonnx.export.planning.kept_codes import foreseen_formats
from qwonnx.export.planning.resident_memory import load_weights
from qwonnx.export.planning.weight_layout import WeightLayout, lay_out_weights
from qwonnx.export.quantization.recipe import BLOCK_SIZES, DEFAULT_RECIPE, NO_RECIPE, SHIPPED, Preset, Recipe, Storages
from qwonnx.export.quantization.size_table import weight_groups
from qwonnx.export.quantization.storage_plan import StoragePlan, StoredFormats
from qwonnx.export.targets.target import LoadedWeights, TargetChoice
from qwonnx.export.weight_files.weight_item import WeightItem
from qwonnx.runtime.artifact.manifest import WeightGroup
from qwonnx.runtime.native.kernels import Kernels


@dataclass(frozen=True, slots=True)
class NamedRecipe:
    """A recipe and its name on the command line."""

    name: str
    recipe: Recipe
    options: str  # of `qwonnx export` that select it, without the block size


def named_recipes(weight_block_size: int | None = None, default: str = DEFAULT_RECIPE) -> tuple[NamedRecipe, ...]:
    """The recipes that a plan compares: presets without exceptions, and shipped ones with a target's default."""
    names = dict.fromkeys((*Preset, "smallest", default, "best"))
    return tuple(named_recipe(name, weight_block_size) for name in names)


def named_recipe(name: str, weight_block_size: int | None = None) -> NamedRecipe:
    """The recipe of a name; weight_block_size None is the recipe's own.

    Raises:
        RecipeError: no recipe has this name.
    """
    if name in list(Preset):
        chosen = Recipe.choose(NO_RECIPE, name, weight_block_size)
        return NamedRecipe(name, chosen, f"--weights {name} --recipe {NO_RECIPE}")
    if name in SHIPPED:
        return NamedRecipe(name, Recipe.choose(name, None, weight_block_size), f"--recipe {name}")
    raise RecipeError(f"there is no recipe {name!r}: use one of {', '.join((*Preset, *SHIPPED))}")


def in_every_block_size(recipes: Sequence[str]) -> tuple[NamedRecipe, ...]:
    """Recipes of these names with every block size, each once."""
    made = (named_recipe(name, block_size) for block_size in BLOCK_SIZES for name in recipes)
    return tuple(dict.fromkeys(made))


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model under one recipe, for a target. num_bytes are of codes and scales, without the padding to pages."""

    named: NamedRecipe
    choice: TargetChoice
    storages: Storages
    weights: tuple[WeightItem, ...]
    num_parameters: int
    num_bytes: int
    layout: WeightLayout
    artifact: ArtifactSize
    loaded: LoadedWeights

    @property
    def groups(self) -> tuple[WeightGroup, ...]:
        """Sizes by kind of weight and by storage, as in the closing table of an export."""
        return weight_groups(self.weights)


def store_model(
    config: ModelConfig,
    named: NamedRecipe,
    copied: CopiedFiles,
    choice: TargetChoice,
    formats: StoredFormats | None = None,
    kernels: Kernels = Kernels.NATIVE,
) -> StoredModel:
    """A model under one recipe; codes that the checkpoint already has are kept.

    Args:
        config: the model.
        named: the recipe.
        copied: files that an export would copy.
        choice: the target, and its types of activations and cache.
        formats: of the checkpoint's weights; by default foreseen from the configuration.
        kernels: that the session runs.

    Raises:
        RecipeError: the recipe cannot be applied to the model, or has a rule that matches nothing.
    """
    storages = StoragePlan(named.recipe, formats or foreseen_formats(config)[0])
    weights = planned_weights(config, storages, choice)
    named.recipe.check_rules_match(
        (*(name for weight in weights for name in weight.weight_names), *tied_weights(config))
    )
    layout = lay_out_weights(weights)
    return StoredModel(
        named=named,
        choice=choice,
        storages=storages,
        weights=weights,
        num_parameters=sum(weight.num_parameters for weight in weights),
        num_bytes=sum(weight.num_bytes for weight in weights),
        layout=layout,
        artifact=estimate_artifact(config, layout, copied, choice.target),
        loaded=load_weights(config, weights, choice, kernels),
    )
