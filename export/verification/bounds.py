"""How far a right artifact of each recipe is from its checkpoint: measured, and a margin.

Layers, embedding and head are compared on equal inputs, so what a recipe makes of them depends little on the model. Two
were measured: the trained miniature, and a cut of 35B-A3B with random weights, whose layers differ 1.2 to 2.2 times as
much, because its routers are undecided and many tokens change an expert. Weights with heavy tails (Student t, 4 degrees
of freedom) have 1.6 times the rounding error of normal ones (docs/quantization.md): the margin of 2 covers that. KL
grows with the square of an error, so its margin is 4.

`python -m infra.bench.recipe_bounds CHECKPOINT` measures them again.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwonnx.export.quantization.recipe import SHIPPED, Preset, Recipe
from qwonnx.export.verification.evidence import EMBEDDING, HEAD
from qwonnx.runtime.artifact.manifest import Manifest, QuantizationFacts

ERROR_MARGIN, KL_MARGIN = 2.0, 4.0

# Two programs that add the same float32 numbers in other orders. A token whose two best experts are equal up to
# rounding may go to another one, so only the median over tokens is this small.
ROUNDING = 1e-3
# What such tokens make of a layer's error, if there are a few dozen among hundreds.
_FLOAT_ERROR = 0.05


@dataclass(frozen=True, slots=True)
class Measured:
    """The largest of all measurements: relative errors of parts, and the mean KL divergence in nats."""

    layer: float
    embedding: float
    head: float
    kl: float

    def __add__(self, other: Measured) -> Measured:
        return Measured(
            self.layer + other.layer, self.embedding + other.embedding, self.head + other.head, self.kl + other.kl
        )


# With int8 activations, which add a little. Parts: the larger one of both models. KL: the trained miniature's, on 4,096
# tokens of its tasks; of int8 and of the caches on the built-in text. int4 and int8: all matrices alike.
RECIPES = {
    "fp32": Measured(layer=_FLOAT_ERROR, embedding=0.0, head=0.0, kl=0.0),
    "int8": Measured(layer=0.039, embedding=0.0062, head=0.0097, kl=0.0043),
    "int4": Measured(layer=0.255, embedding=0.0062, head=0.0971, kl=0.146),
    "smallest": Measured(layer=0.255, embedding=0.0811, head=0.0971, kl=0.146),
    "balanced": Measured(layer=0.186, embedding=0.0062, head=0.0097, kl=0.065),
    "cuda": Measured(layer=0.184, embedding=0.0062, head=0.0097, kl=0.065),
    "best": Measured(layer=0.092, embedding=0.0062, head=0.0097, kl=0.0135),
}
# What int8 activations add to float32 weights, and quantised keys and values to any.
_ACTIVATIONS = {"int8": Measured(layer=0.02, embedding=0.0, head=0.008, kl=0.003)}
_CACHES = {
    "int8": Measured(layer=0.024, embedding=0.0, head=0.0, kl=0.0014),
    "int4": Measured(layer=0.148, embedding=0.0, head=0.0, kl=0.085),
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that a right artifact of a recipe differs.

    recipe: its name, for display.
    is_exact: nothing is quantised, so both models are equal up to rounding.
    """

    recipe: str
    is_exact: bool
    layer: float
    embedding: float
    head: float
    kl: float

    def of_part(self, name: str) -> float:
        """The bound of a PartError of this name."""
        return {EMBEDDING: self.embedding, HEAD: self.head}.get(name, self.layer)


def bounds_of(manifest: Manifest) -> Bounds:
    """Bounds for what an artifact says of itself."""
    facts = manifest.quantization
    name = recipe_name(facts)
    measured = RECIPES.get(name) or RECIPES[_least_exact(facts)]
    is_exact = name == "fp32" and facts.activations not in _ACTIVATIONS and facts.kv not in _CACHES
    if name == "fp32" and facts.activations in _ACTIVATIONS:
        measured += _ACTIVATIONS[facts.activations]
    if facts.kv in _CACHES:
        measured += _CACHES[facts.kv]
    return Bounds(
        recipe=name + (f" with keys and values in {facts.kv}" if facts.kv in _CACHES else ""),
        is_exact=is_exact,
        layer=ERROR_MARGIN * measured.layer,
        embedding=ERROR_MARGIN * measured.embedding + ROUNDING,
        head=ERROR_MARGIN * measured.head + ROUNDING,
        kl=KL_MARGIN * measured.kl + ROUNDING,
    )


def recipe_name(facts: QuantizationFacts) -> str:
    """A shipped recipe, a preset, or a description of another one, for display."""
    if not facts.recipe:
        return facts.weights
    for name in SHIPPED:
        shipped = Recipe.named(name)
        if (shipped.weights, tuple((rule.pattern, rule.bits) for rule in shipped.rules)) == (
            facts.weights,
            facts.recipe,
        ):
            return name
    return f"a recipe that starts from {facts.weights}"


def _least_exact(facts: QuantizationFacts) -> str:
    """The measured recipe that no recipe with these bits is worse than."""
    bits = min(Preset(facts.weights).bits, *(bits for _, bits in facts.recipe))
    return {4: "smallest", 8: "int8"}.get(bits, "fp32")
