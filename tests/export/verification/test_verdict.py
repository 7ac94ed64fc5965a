"""What is decided from what was measured."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from qwonnx.export.quantization.recipe import SHIPPED, Recipe
from qwonnx.export.verification.bounds import RECIPES, bounds_of
from qwonnx.export.verification.evidence import Evidence, PartError
from qwonnx.export.verification.predictions import Predictions
from qwonnx.export.verification.verdict import WRITTEN, Decision, Verdict, judge
from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.artifact.manifest import Manifest

VOCABULARY = 1000


def manifest_of(artifact: Artifact, recipe: Recipe, activations: str = "int8", kv: str = "float32") -> Manifest:
    facts = dataclasses.replace(
        artifact.manifest.quantization,
        weights=recipe.weights,
        recipe=tuple((rule.pattern, rule.bits) for rule in recipe.rules),
        activations=activations,
        kv=kv,
    )
    return dataclasses.replace(artifact.manifest, quantization=facts)


@pytest.fixture(scope="module")
def balanced(tiny_fp32: Artifact) -> Manifest:
    return manifest_of(tiny_fp32, Recipe.named("balanced"))


@pytest.fixture(scope="module")
def exact(tiny_fp32: Artifact) -> Manifest:
    return manifest_of(tiny_fp32, Recipe.preset("fp32"), "float32")


def evidence(
    *,
    kl: float = 0.05,
    layer: float = 0.1,
    median: float | None = None,
    logits: float = 0.1,
    surprise: float = 2.0,
    entropy: float = 2.0,
    parts: bool = True,
) -> Evidence:
    predictions = Predictions(
        kl=np.full(4, kl),
        entropy=np.full(4, entropy),
        surprise_checkpoint=np.full(3, surprise),
        surprise_artifact=np.full(3, surprise),
        same_token=np.ones(4, np.bool_),
        max_logit_difference=1.0,
        logit_error=np.full(4, logits),
        head_error=None,
    )
    small = min(1e-3, layer / 20)
    measured = (
        PartError("embedding", small, small),
        PartError("layer 0", layer / 2, layer / 2 if median is None else median),
        PartError("layer 1", layer, layer if median is None else median),
        PartError("head", small, small),
    )
    return Evidence(predictions, measured if parts else (), (1.0, 2.0), 1.0, VOCABULARY)


def decided(found: Evidence, manifest: Manifest, max_kl: float | None = None, text: str = "built-in") -> Decision:
    return judge(found, manifest, max_kl, text)


def test_a_right_artifact_is_quantised_as_its_recipe_says(balanced: Manifest) -> None:
    decision = decided(evidence(), balanced)
    assert decision.verdict is Verdict.QUANTISED
    assert decision.sentence.startswith(
        "quantised as its recipe says: KL 0.0500 ± 0.0000 nats, within the bound 0.2610 measured"
    )
    assert "measured for balanced" in decision.reason


def test_the_first_wrong_part_is_named(balanced: Manifest) -> None:
    decision = decided(evidence(layer=0.9), balanced)
    assert decision.verdict is Verdict.DIFFERENT
    assert decision.reason.startswith("layer 0 differs by 45.00% on equal inputs, and balanced by 37.20% at most")
    assert decided(evidence(layer=math.nan), balanced).verdict is Verdict.DIFFERENT
    assert decided(evidence(layer=math.inf), balanced).verdict is Verdict.DIFFERENT


def test_without_rounding_models_are_equal_whatever_the_text_says(exact: Manifest, balanced: Manifest) -> None:
    for manifest in (exact, balanced):
        found = evidence(kl=1e-9, layer=1e-6, logits=1e-6, surprise=12.0, entropy=6.9)
        assert decided(found, manifest).verdict is Verdict.EQUAL
    # A token whose experts tie goes to another one.
    assert decided(evidence(kl=1e-6, layer=0.05, median=1e-6, logits=1e-6), exact).verdict is Verdict.EQUAL
    decision = decided(evidence(kl=1e-4, layer=0.01, logits=0.01), exact)
    assert (decision.verdict, decision.reason[:19]) == (Verdict.DIFFERENT, "fp32 rounds nothing")


def test_a_text_that_tells_nothing_leaves_the_decision_to_the_layers(balanced: Manifest) -> None:
    for surprise, entropy in ((11.0, 3.0), (6.9, 6.85)):  # foreign, flat
        decision = decided(evidence(kl=3.0, surprise=surprise, entropy=entropy), balanced)
        assert decision.verdict is Verdict.QUANTISED
        assert decision.reason.endswith("the text tells nothing of predictions")
        decision = decided(evidence(kl=1e-3, surprise=surprise, entropy=entropy, parts=False), balanced)
        assert (decision.verdict, decision.verdict.exit_status) == (Verdict.UNCLEAR, 3)


def test_a_text_that_the_artifact_wrote_and_the_checkpoint_finds_absurd_is_of_another_model(balanced: Manifest) -> None:
    found = evidence(surprise=11.0, entropy=3.0, parts=False)
    assert decided(found, balanced, text=WRITTEN).verdict is Verdict.DIFFERENT


def test_predictions_that_differ_more_than_measured_are_unclear_if_every_layer_is_right(balanced: Manifest) -> None:
    decision = decided(evidence(kl=0.9), balanced)
    assert decision.verdict is Verdict.UNCLEAR
    assert "qwonnx eval" in decision.reason
    assert decided(evidence(kl=0.9, parts=False), balanced).verdict is Verdict.DIFFERENT


def test_the_users_bound_takes_the_place_of_the_recipes(balanced: Manifest) -> None:
    assert decided(evidence(kl=0.9), balanced, max_kl=1.0).verdict is Verdict.QUANTISED
    decision = decided(evidence(kl=0.05), balanced, max_kl=0.01)
    assert (decision.verdict, decision.reason) == (
        Verdict.DIFFERENT,
        "the mean KL divergence 5.000e-02 exceeds 0.01",
    )
    assert decided(evidence(kl=math.nan), balanced, max_kl=1.0).verdict is Verdict.DIFFERENT


def test_every_shipped_recipe_was_measured_and_others_have_bounds_of_their_bits(tiny_fp32: Artifact) -> None:
    for name in SHIPPED:
        found = bounds_of(manifest_of(tiny_fp32, Recipe.named(name)))
        assert (found.recipe, found.layer) == (name, 2 * RECIPES[name].layer)
    for preset in ("int8", "int4"):
        assert bounds_of(manifest_of(tiny_fp32, Recipe.preset(preset))).recipe == preset
    own = Recipe.named("best").rules[:2]
    found = bounds_of(manifest_of(tiny_fp32, Recipe("int4", 32, own)))
    assert (found.recipe, found.layer) == ("a recipe that starts from int4", 2 * RECIPES["smallest"].layer)
    cached = bounds_of(manifest_of(tiny_fp32, Recipe.preset("fp32"), "float32", kv="int8"))
    assert cached.recipe == "fp32 with keys and values in int8"
    assert not cached.is_exact
