"""A plan: the needs of exports of one model by several recipes, and of serving them.

    config.json -> weights -> layout of their files -> artifact
                          `-> weights in memory -> memory at several contexts -> where it fits
                          `-> bytes read a token -> roofline

Everything follows from the configuration and the assumptions, without a trace or a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.errors import RecipeError
from qwonnx.export.planning.artifact_size import CopiedFiles
from qwonnx.export.planning.deployment import Deployment, deployment
from qwonnx.export.planning.kept_codes import foreseen_formats
from qwonnx.export.planning.machines import CARDS, HOSTS
from qwonnx.export.planning.memory import Use, memory_of
from qwonnx.export.planning.resident_memory import Serving
from qwonnx.export.planning.states import StateSizes, state_sizes
from qwonnx.export.planning.stored_model import NamedRecipe, StoredModel, store_model
from qwonnx.export.planning.traffic import DecodeTraffic, active_parameters, decode_traffic
from qwonnx.export.quantization.storage_plan import StoredFormats
from qwonnx.export.targets.target import TargetChoice
from qwonnx.runtime.quantities import bytes_text, tokens_text

CONTEXTS = (4 << 10, 32 << 10, 256 << 10, 1 << 20)

# The most memory of an export, for a model of any size: slices of weights in flight, and Python with torch.
EXPORT_MEMORY_BYTES = 2_000_000_000 + 400_000_000


@dataclass(frozen=True, slots=True)
class Assumptions:
    """The inputs of a plan other than the model. bandwidth is in bytes a second; None: no roofline."""

    choice: TargetChoice
    serving: Serving
    bandwidth: int | None


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Facts of the text model.

    num_active_parameters are those that a token multiplies: the head counts, a lookup in the embedding does not.
    """

    architecture: str
    num_parameters: int
    num_active_parameters: int
    num_linear_attention_layers: int
    num_full_attention_layers: int
    num_experts: int
    num_experts_per_tok: int
    max_position_embeddings: int
    states: StateSizes


@dataclass(frozen=True, slots=True)
class RecipePlan:
    """The plan for one recipe. memory has an entry for each of CONTEXTS, and one for the requested context."""

    model: StoredModel
    memory: tuple[Use, ...]
    traffic: DecodeTraffic
    deployments: tuple[Deployment, ...]

    def memory_at(self, context: int) -> Use:
        """Memory at one of the plan's contexts."""
        return next(use for use in self.memory if use.context == context)


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole plan. notes are texts for display: assumptions, and limits of this version."""

    model: ModelSummary
    assumptions: Assumptions
    recipes: tuple[RecipePlan, ...]
    notes: tuple[str, ...]


def make_plan(
    config: ModelConfig, recipes: Sequence[NamedRecipe], assumptions: Assumptions, copied: CopiedFiles
) -> Plan:
    """Plan for every recipe.

    Raises:
        RecipeError: none of the recipes can be applied to the model.
    """
    models, notes = store_models(config, recipes, assumptions, copied)
    return plan_models(config, models, assumptions, notes)


def plan_models(
    config: ModelConfig, models: Sequence[StoredModel], assumptions: Assumptions, notes: Sequence[str]
) -> Plan:
    """Plan for models that are stored already, perhaps with exact sizes of their artifacts."""
    planned = tuple(_recipe_plan(config, model, assumptions) for model in models)
    return Plan(summary(config, models[0]), assumptions, planned, (*notes, *_notes(config, assumptions)))


def store_models(
    config: ModelConfig,
    recipes: Sequence[NamedRecipe],
    assumptions: Assumptions,
    copied: CopiedFiles,
    formats: StoredFormats | None = None,
) -> tuple[list[StoredModel], list[str]]:
    """The model under every recipe that can be applied to it, and a note on each that cannot.

    Args:
        config: the model.
        recipes: to apply.
        assumptions: only the target, its activations and the kernels are used.
        copied: files that an export would copy.
        formats: of the checkpoint's weights; by default foreseen from config.json.

    Raises:
        RecipeError: no recipe can be applied.
    """
    notes: list[str] = []
    if formats is None:
        formats, note = foreseen_formats(config)
        if note is not None:
            notes.append(note)
    models = []
    refused: RecipeError | None = None
    for named in recipes:
        try:
            models.append(
                store_model(
                    config,
                    named,
                    copied,
                    assumptions.choice,
                    formats,
                    assumptions.serving.kernels,
                )
            )
        except RecipeError as error:
            refused = error
            notes.append(f"{named.name} cannot be applied: {error}")
    if refused is not None and not models:
        raise refused
    return models, notes


def summary(config: ModelConfig, model: StoredModel) -> ModelSummary:
    """The text model, which is the same under every recipe."""
    return ModelSummary(
        architecture=config.architecture,
        num_parameters=model.num_parameters,
        num_active_parameters=active_parameters(config, model.weights),
        num_linear_attention_layers=config.layer_types.count("linear_attention"),
        num_full_attention_layers=config.layer_types.count("full_attention"),
        num_experts=config.num_experts,
        num_experts_per_tok=config.num_experts_per_tok,
        max_position_embeddings=config.max_position_embeddings,
        states=state_sizes(config, model.choice.state_layout),
    )


def _recipe_plan(config: ModelConfig, model: StoredModel, assumptions: Assumptions) -> RecipePlan:
    target, serving = assumptions.choice.target, assumptions.serving
    states = state_sizes(config, assumptions.choice.state_layout)
    contexts = sorted({*CONTEXTS, serving.context})
    return RecipePlan(
        model=model,
        memory=tuple(memory_of(config, model, states, replace(serving, context=context)) for context in contexts),
        traffic=decode_traffic(
            config,
            model.weights,
            states,
            context=serving.context,
            sequences=serving.sequences,
            kv=serving.kv,
        ),
        deployments=tuple(
            deployment(config, model, states, place, serving) for place in (CARDS if target.on_device else HOSTS)
        ),
    )


def _notes(config: ModelConfig, assumptions: Assumptions) -> list[str]:
    """The notes for all recipes."""
    notes = []
    serving, limit = assumptions.serving, config.max_position_embeddings
    beyond = [tokens_text(context) for context in sorted({*CONTEXTS, serving.context}) if context > limit]
    if beyond:
        notes.append(
            f"{' and '.join(beyond)} tokens are more than the {limit} that this config.json allows:"
            " extend it with rope_type yarn first"
        )
    target = assumptions.choice.target
    where = " of the host's memory" if target.on_device else ""
    notes.append(f"`qwonnx serve` also keeps snapshots of prompts, up to 1GiB{where} or --prefix-cache-bytes")
    states = state_sizes(config, assumptions.choice.state_layout)
    each, fixed = bytes_text(states.kv_bytes_per_token(serving.kv)), bytes_text(states.fixed_bytes)
    notes.append(f"a system prompt baked with --prefix takes {fixed}, and {each} a token, on disk and mapped")
    if target.note is not None:
        notes.append(target.note)
    return notes
