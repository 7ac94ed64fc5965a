"""The manifest of an export: facts of the model, how its weights are stored, its graphs, states and files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.metadata import version

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.export.quantization.size_table import Stored, weight_groups
from qwonnx.export.targets.target import Activations, TargetChoice
from qwonnx.runtime.artifact.manifest import (
    WHOLE_MODEL,
    AdapterFacts,
    AdapterTarget,
    FileEntry,
    GraphSpec,
    Manifest,
    ModelFacts,
    QuantizationFacts,
    SourceFacts,
    StageFacts,
    WeightGroup,
)
from qwonnx.runtime.artifact.schemas import SCHEMA_VERSION


def describe_artifact(
    config: ModelConfig,
    recipe: Recipe,
    source: SourceFacts,
    stored: Sequence[Stored],
    graphs: dict[str, GraphSpec],
    files: tuple[FileEntry, ...],
    choice: TargetChoice,
    stage: StageFacts = WHOLE_MODEL,
    adapters: tuple[AdapterFacts, ...] = (),
    adapter_targets: tuple[AdapterTarget, ...] = (),
) -> Manifest:
    """The manifest of an artifact.

    Args:
        config, recipe, source: what was exported, how, and from where.
        stored: the weights that were written.
        graphs: by name.
        files: all files but the manifest itself.
        choice: the target, and its types of activations and cache.
        stage: the part of the model.
        adapters: that were merged into the weights.
        adapter_targets: projections that adapters can change while the model runs.
    """
    groups = weight_groups(stored)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        qwonnx_version=version("qwonnx"),
        target=choice.target.name,
        minimum_onnxruntime=choice.target.minimum_onnxruntime,
        source=source,
        model=_model_facts(config, sum(group.num_parameters for group in groups)),
        quantization=QuantizationFacts(
            weights=recipe.weights,
            weight_block_size=recipe.weight_block_size,
            activations=_activations(groups, choice),
            kv=choice.kv.value,
            recipe=tuple((rule.pattern, rule.bits) for rule in recipe.rules),
            groups=groups,
        ),
        graphs=graphs,
        files=files,
        stage=stage,
        adapters=adapters,
        adapter_targets=adapter_targets,
    )


def _activations(groups: tuple[WeightGroup, ...], choice: TargetChoice) -> str:
    """The type that kernels use: only kernels of quantised weights quantise activations."""
    quantized = any(group.storage.startswith("int") for group in groups)
    kept = quantized or choice.activations is not Activations.INT8
    return (choice.activations if kept else Activations.FLOAT32).value


def _model_facts(config: ModelConfig, num_parameters: int) -> ModelFacts:
    shared = {field.name for field in dataclasses.fields(ModelFacts)} - {"num_parameters"}
    return ModelFacts(**{name: getattr(config, name) for name in shared}, num_parameters=num_parameters)
