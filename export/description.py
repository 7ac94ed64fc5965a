"""What a manifest says of an export: facts of the model, how its weights are stored, its graph, states and files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.metadata import version

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.modeling.cache_spec import state_specs
from qwonnx.export.modeling.trace import decoder_inputs, decoder_outputs
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.export.quantization.size_table import Stored, weight_groups
from qwonnx.runtime.artifact.file_names import DECODER, graph_file
from qwonnx.runtime.artifact.manifest import (
    SCHEMA_VERSION,
    FileEntry,
    GraphSpec,
    Manifest,
    ModelFacts,
    QuantizationFacts,
    SourceFacts,
    WeightGroup,
)

# The kernels that the CPU target names first came together in this release.
MINIMUM_ONNXRUNTIME = "1.32"


def describe_artifact(
    config: ModelConfig,
    recipe: Recipe,
    source: SourceFacts,
    stored: Sequence[Stored],
    files: tuple[FileEntry, ...],
    *,
    target: str,
    int8_activations: bool,
    kv: str,
) -> Manifest:
    """The manifest of an artifact.

    Args:
        config, recipe, source: what was exported, how, and from where.
        stored: the weights that were written.
        files: all files but the manifest itself.
        target: "cpu" or "portable".
        int8_activations: whether the CPU kernels were asked to quantise activations.
        kv: how keys and values are cached.
    """
    groups = weight_groups(stored)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        qwonnx_version=version("qwonnx"),
        target=target,
        minimum_onnxruntime=MINIMUM_ONNXRUNTIME,
        source=source,
        model=_model_facts(config, sum(group.num_parameters for group in groups)),
        quantization=QuantizationFacts(
            weights=recipe.weights,
            weight_block_size=recipe.weight_block_size,
            activations=_activations(groups, target, int8_activations=int8_activations),
            kv=kv,
            recipe=tuple((rule.pattern, rule.bits) for rule in recipe.rules),
            groups=groups,
        ),
        graphs={
            DECODER: GraphSpec(graph_file(DECODER), decoder_inputs(), decoder_outputs(config), state_specs(config, kv))
        },
        files=files,
    )


def _activations(groups: tuple[WeightGroup, ...], target: str, *, int8_activations: bool) -> str:
    """What the kernels really do: only quantised weights have kernels that quantise activations."""
    quantized = any(group.storage != "float32" for group in groups)
    return "int8" if int8_activations and quantized and target == "cpu" else "float32"


def _model_facts(config: ModelConfig, num_parameters: int) -> ModelFacts:
    shared = {field.name for field in dataclasses.fields(ModelFacts)} - {"num_parameters"}
    return ModelFacts(**{name: getattr(config, name) for name in shared}, num_parameters=num_parameters)
