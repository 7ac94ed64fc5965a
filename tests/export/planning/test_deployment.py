"""Where models fit: contexts at the edge of what fits, and several devices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwonnx.export.checkpoint.config import ModelConfig, parse_config
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.planning.artifact_size import CopiedFiles
from qwonnx.export.planning.deployment import deployment, longest_context, needed_memory
from qwonnx.export.planning.machines import DEPLOYMENT_TARGETS, DeploymentTarget
from qwonnx.export.planning.resident_memory import Serving
from qwonnx.export.planning.states import state_sizes
from qwonnx.export.planning.stored_model import StoredModel, named_recipe, store_model
from qwonnx.export.targets.register import choose_target
from tests.checkpoints.published import PUBLISHED

SERVING = Serving(context=32_768, sequences=1, kv=KvType.FLOAT32, chunk_tokens=512, num_threads=4)
TARGETS = {target.name: target for target in DEPLOYMENT_TARGETS}


def stored(size: str, weights: str) -> tuple[ModelConfig, StoredModel]:
    config = parse_config(PUBLISHED[size].config())
    copied = CopiedFiles.estimated(config)
    return config, store_model(config, named_recipe(weights), copied, choose_target())


def fits(size: str, weights: str, target: str) -> bool:
    config, model = stored(size, weights)
    return deployment(config, model, TARGETS[target], SERVING).fits


def test_well_known_cases() -> None:
    assert fits("4B", "int4", "AWS Lambda, 10 GB")
    assert not fits("35B-A3B", "int4", "AWS Lambda, 10 GB")
    assert fits("35B-A3B", "int4", "container, 32 GB")
    assert not fits("35B-A3B", "int8", "container, 32 GB")
    assert fits("35B-A3B", "int4", "1 x 24 GB accelerator")
    assert not fits("35B-A3B", "int8", "1 x 24 GB accelerator")
    assert fits("35B-A3B", "int8", "2 x 24 GB accelerator")
    assert fits("397B-A17B", "int4", "2 x 141 GB accelerator")
    assert not fits("397B-A17B", "int8", "2 x 141 GB accelerator")


def test_lambda_is_limited_by_disk_as_well() -> None:
    config, model = stored("9B", "int8")
    lambda_function = TARGETS["AWS Lambda, 10 GB"]
    short = deployment(config, model, lambda_function, replace(SERVING, context=4096))
    assert short.missing_disk == 0
    small_disk = replace(lambda_function, disk=5 * 10**9)
    found = deployment(config, model, small_disk, SERVING)
    assert found.missing_disk == model.artifact.num_bytes - 5 * 10**9 > 0
    assert (found.fits, found.largest_context) == (False, 0)


@pytest.mark.parametrize("target", DEPLOYMENT_TARGETS, ids=lambda target: target.name)
def test_the_longest_context_is_the_last_that_fits(target: DeploymentTarget) -> None:
    config, model = stored("27B", "int8")
    found = deployment(config, model, target, SERVING)
    states = state_sizes(config)
    longest = found.largest_context
    if longest:
        assert needed_memory(config, model, states, target, replace(SERVING, context=longest)) <= target.memory
    if longest < config.max_position_embeddings:
        beyond = replace(SERVING, context=longest + 1024)
        assert needed_memory(config, model, states, target, beyond) > target.memory or found.missing_disk


def test_devices_share_weights_and_states_but_not_work_buffers() -> None:
    config, model = stored("122B-A10B", "int8")
    states = state_sizes(config)
    one, eight = (
        needed_memory(config, model, states, DeploymentTarget("", 1, None, count), SERVING) for count in (1, 8)
    )
    assert one / 8 < eight < one / 8 + 1e9


@pytest.mark.parametrize(("memory", "longest"), [(0, 0), (1023, 0), (1024, 1024), (5000, 4096), (10_000, 10_000)])
def test_contexts_are_searched_in_whole_k_up_to_the_limit(memory: int, longest: int) -> None:
    assert longest_context(lambda context: context, memory, 10_000) == longest
