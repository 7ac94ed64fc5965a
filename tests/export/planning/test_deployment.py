"""Where models fit: contexts at the edge of what fits, and several devices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwonnx.export.checkpoint.config import ModelConfig, parse_config
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.planning.artifact_size import CopiedFiles
from qwonnx.export.planning.deployment import deployment, longest_context
from qwonnx.export.planning.machines import CARDS, HOSTS, DeploymentTarget
from qwonnx.export.planning.memory import memory_of
from qwonnx.export.planning.resident_memory import Serving
from qwonnx.export.planning.states import StateSizes, state_sizes
from qwonnx.export.planning.stored_model import StoredModel, named_recipe, store_model
from qwonnx.export.targets.register import choose_target
from tests.checkpoints.published import PUBLISHED

SERVING = Serving(context=32_768, sequences=1, kv=KvType.FLOAT32, chunk_tokens=512, num_threads=4)
TARGETS = {target.name: target for target in (*HOSTS, *CARDS)}


def stored(size: str, recipe: str, target: str = "cpu") -> tuple[ModelConfig, StoredModel, StateSizes]:
    config, choice = parse_config(PUBLISHED[size].config()), choose_target(target)
    model = store_model(config, named_recipe(recipe), CopiedFiles.estimated(config), choice)
    return config, model, state_sizes(config, choice.state_layout)


def fits(size: str, recipe: str, place: str) -> bool:
    target = "cuda" if TARGETS[place] in CARDS else "cpu"
    serving = replace(SERVING, kv=choose_target(target).kv)
    return deployment(*stored(size, recipe, target), TARGETS[place], serving).fits


def test_well_known_cases() -> None:
    assert fits("4B", "int4", "AWS Lambda, 10 GB")
    assert not fits("35B-A3B", "int4", "AWS Lambda, 10 GB")
    assert fits("35B-A3B", "int4", "container, 32 GB")
    assert not fits("35B-A3B", "int8", "container, 32 GB")
    assert fits("9B", "int8", "T4, 16 GB")
    assert not fits("35B-A3B", "int4", "T4, 16 GB")
    assert fits("35B-A3B", "int4", "RTX 4090, 24 GB")
    assert not fits("35B-A3B", "int8", "RTX 4090, 24 GB")
    assert fits("35B-A3B", "int8", "L40S, 48 GB")
    assert fits("122B-A10B", "int4", "RTX PRO 6000, 96 GB")
    assert not fits("397B-A17B", "int4", "H200, 141 GB")


def test_lambda_is_limited_by_disk_as_well() -> None:
    config, model, states = stored("9B", "int8")
    lambda_function = TARGETS["AWS Lambda, 10 GB"]
    short = deployment(config, model, states, lambda_function, replace(SERVING, context=4096))
    assert short.missing_disk == 0
    small_disk = replace(lambda_function, disk=5 * 10**9)
    found = deployment(config, model, states, small_disk, SERVING)
    assert found.missing_disk == model.artifact.num_bytes - 5 * 10**9 > 0
    assert (found.fits, found.largest_context) == (False, 0)


@pytest.mark.parametrize("place", [*HOSTS, *CARDS], ids=lambda place: place.name)
def test_the_longest_context_is_the_last_that_fits(place: DeploymentTarget) -> None:
    config, model, states = stored("27B", "int4", "cuda" if place in CARDS else "cpu")
    found = deployment(config, model, states, place, SERVING)
    longest = found.largest_context
    if longest:
        assert memory_of(config, model, states, replace(SERVING, context=longest)).required <= place.memory
    if longest < config.max_position_embeddings:
        beyond = replace(SERVING, context=longest + 1024)
        assert memory_of(config, model, states, beyond).required > place.memory or found.missing_disk


@pytest.mark.parametrize(("memory", "longest"), [(0, 0), (1023, 0), (1024, 1024), (5000, 4096), (10_000, 10_000)])
def test_contexts_are_searched_in_whole_k_up_to_the_limit(memory: int, longest: int) -> None:
    assert longest_context(lambda context: context, memory, 10_000) == longest
