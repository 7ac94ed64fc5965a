"""Recipes that fit limits: the most exact first; if nothing fits, what is missing and the nearest."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from qwonnx.export.checkpoint.config import ModelConfig, parse_config
from qwonnx.export.errors import PlanError, RecipeError
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.planning.artifact_size import CopiedFiles
from qwonnx.export.planning.fit import ROUNDING_ERROR, Candidate, Fit, Limits, find_fit, parse_limits
from qwonnx.export.planning.machines import PLATFORMS
from qwonnx.export.planning.plan import Assumptions
from qwonnx.export.planning.resident_memory import Serving, memory_use, tokenizer_memory
from qwonnx.export.planning.states import state_sizes
from qwonnx.export.planning.stored_model import NamedRecipe, in_every_block_size, named_recipe, named_recipes
from qwonnx.export.quantization.recipe import Recipe, Rule
from qwonnx.export.targets.register import choose_target
from tests.checkpoints.published import PUBLISHED

SERVING = Serving(context=32_768, sequences=1, kv=KvType.FLOAT32, chunk_tokens=512, num_threads=4)
ASSUMPTIONS = Assumptions(choose_target(), SERVING, None)
RECIPES = in_every_block_size([named.name for named in named_recipes()])


def config_of(size: str) -> ModelConfig:
    return parse_config(PUBLISHED[size].config())


def fit(size: str, limits: Limits) -> Fit:
    config = config_of(size)
    kv_types = ASSUMPTIONS.choice.target.kv_types
    return find_fit(config, RECIPES, kv_types, limits, ASSUMPTIONS, CopiedFiles.estimated(config))


def test_limits_are_read_whole() -> None:
    limits = parse_limits("memory=10GB, disk=5GiB,context=64k,sequences=4", 32_768, 1)
    assert limits == Limits(10**10, 5 << 30, 65_536, 4)
    assert parse_limits("disk=1GB", 32_768, 2) == Limits(None, 10**9, 32_768, 2)


def test_a_platform_has_its_memory_and_disk_and_less_may_be_asked_for() -> None:
    limits = parse_limits("platform=lambda,memory=4GiB,context=8k", 32_768, 1)
    assert limits == Limits(4 << 30, PLATFORMS["lambda"].disk, 8192, 1, PLATFORMS["lambda"])
    assert parse_limits("platform=cloud-run", 4096, 1).memory == 32 << 30
    assert parse_limits("platform=cloud-run,disk=1TB", 4096, 1).disk == 10**12  # an image has no limit there


@pytest.mark.parametrize(
    ("size", "platform", "fitting"),
    [
        ("35B-A3B", "lambda", False),  # 18 GB at the fewest bits: neither the image nor the memory has room
        ("35B-A3B", "lambda-zip", False),
        ("35B-A3B", "sagemaker-serverless", False),
        ("35B-A3B", "cloud-run", True),
        ("9B", "lambda", True),
        ("9B", "sagemaker-serverless", True),
        ("27B", "sagemaker-serverless", False),
        ("0.8B", "lambda-zip", False),  # no published model fits a zip
    ],
)
def test_published_models_fit_the_platforms_that_can_hold_them(size: str, platform: str, fitting: bool) -> None:
    found = fit(size, parse_limits(f"platform={platform},context=4k", 4096, 1))
    assert (found.chosen is not None) is fitting
    one = found.nearest
    assert 0 < one.mapped < one.memory, "mapped weights are counted, and are not all"
    if size == "35B-A3B" and platform == "lambda":
        assert one.missing_disk > 5 * 10**9
        assert one.missing_memory > 5 * 10**9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "give memory=10GB"),
        ("memory", "give memory=10GB"),
        ("ram=1GB", "'ram=1GB'"),
        ("memory=1GB,", "''"),
        ("memory=1GB,memory=2GB", "memory twice"),
        ("context=4k", "neither memory nor disk"),
        ("platform=Lambda", "platform is 'Lambda': use one of lambda,"),
        ("platform=lambda,disk=11GB", "disk is '11GB', and AWS Lambda, 10 GB has"),
        ("memory=10 xB", "memory is '10 xB'"),
        ("disk=1GB,context=0", "context is '0'"),
        ("disk=1GB,sequences=1025", "sequences is '1025'"),
        ("memory=1GB=2", "memory is '1GB=2'"),
    ],
)
def test_odd_limits_are_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_limits(text, 32_768, 1)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_most_exact_that_fits_is_chosen_and_meets_the_limits() -> None:
    found = fit("9B", Limits(10**10, 10**10, 32_768, 1))
    errors = [candidate.rounding_error for candidate in found.candidates]
    assert errors == sorted(errors)
    chosen = found.chosen
    assert chosen is not None
    assert chosen.memory <= 10**10
    assert chosen.disk <= 10**10
    better = found.candidates[: found.candidates.index(chosen)]
    assert all(each.missing_memory or each.missing_disk for each in better)
    # fp32 is better than everything and far too large; with room enough it is chosen.
    assert better[0].model.named.name == "fp32"
    roomy = fit("9B", Limits(10**12, None, 32_768, 1)).chosen
    assert roomy is not None
    assert (roomy.model.named.name, roomy.kv) == ("fp32", KvType.FLOAT32)


def test_the_longest_context_and_the_most_sequences_are_where_it_stops_to_fit() -> None:
    config, limit = config_of("9B"), 10**10
    for candidate in fit("9B", Limits(limit, None, 32_768, 1)).candidates:
        serving = replace(SERVING, kv=candidate.kv)
        needs = partial(_needs, config, candidate)
        longest, most = candidate.largest_context, candidate.largest_sequences
        if longest:
            assert needs(replace(serving, context=longest)) <= limit
        if longest < config.max_position_embeddings:
            assert needs(replace(serving, context=longest + 1024)) > limit
        if most:
            assert needs(replace(serving, sequences=most)) <= limit
        assert needs(replace(serving, sequences=most + 1)) > limit
        assert candidate.fits == (needs(serving) <= limit) == (candidate.missing_memory == 0)
        assert candidate.missing_memory == max(0, needs(serving) - limit)


def _needs(config: ModelConfig, candidate: Candidate, serving: Serving) -> int:
    tokenizer = tokenizer_memory(candidate.model.artifact)
    return memory_use(config, candidate.model.loaded, state_sizes(config), tokenizer, serving).required


def test_where_nothing_fits_the_nearest_lacks_least() -> None:
    found = fit("35B-A3B", Limits(10**10, 10**10, 32_768, 4))
    assert found.chosen is None
    nearest = found.nearest
    assert nearest.model.named.recipe.weights == "int4"
    assert nearest.missing_disk == nearest.disk - 10**10 > 0
    assert nearest.missing_memory == nearest.memory - 10**10 > 0
    assert all(each.missing_disk >= nearest.missing_disk for each in found.candidates)


def test_a_recipe_that_cannot_be_applied_is_left_out_unless_it_is_the_only_one() -> None:
    config = config_of("35B-A3B")
    copied = CopiedFiles.estimated(config)
    limits = Limits(10**12, None, 4096, 1)
    differing = Recipe("int4", 128, (Rule("*.experts.down_proj", 8, 32),))  # one kernel takes one block size
    refused = NamedRecipe("differing", differing, "")
    found = find_fit(config, (named_recipe("fp32"), refused), [KvType.FLOAT32], limits, ASSUMPTIONS, copied)
    assert {candidate.model.named.name for candidate in found.candidates} == {"fp32"}
    with pytest.raises(RecipeError, match="give both the same weight_block_size"):
        find_fit(config, (refused,), [KvType.FLOAT32], limits, ASSUMPTIONS, copied)


def test_errors_of_rounding_are_about_those_of_the_quantiser() -> None:
    torch = pytest.importorskip("torch")
    from qwonnx.export.quantization.quantize import quantize_blocks
    from tests.export.dequantized import dequantize_blocks

    values = torch.randn((256, 1024), generator=torch.Generator().manual_seed(0))
    for (bits, block_size), expected in ROUNDING_ERROR.items():
        codes = torch.empty((256, 1024 * bits // 8), dtype=torch.uint8)
        scales = torch.empty((256, 1024 // block_size))
        quantize_blocks(values, bits, codes, scales)
        error = ((dequantize_blocks(codes, scales, bits) - values) ** 2).mean() / values.var()
        # Quantisers may improve: only the order of the errors is used.
        assert 0.5 * expected < float(error) < 1.1 * expected
    assert [ROUNDING_ERROR[8, size] < ROUNDING_ERROR[4, 16] for size in (16, 32, 64, 128, 256)] == [True] * 5
