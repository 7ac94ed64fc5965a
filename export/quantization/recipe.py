"""The recipe: how each weight is stored, by the first pattern that its name matches.

Rules apply in this order: for weights that are never quantised, the recipe's own rules, the preset. A recipe file is
TOML:

    weights = "int4"              # the preset: "fp32", "int8" or "int4"
    weight_block_size = 128       # input features that share a scale: 16, 32, 64, 128 or 256

    [[rules]]                     # any number, the first match wins
    pattern = "layers.*.linear_attn.out_proj.weight"    # as in a shell: * ? [abc]
    bits = 8                      # 4, 8, or 32 for float32
    weight_block_size = 64        # optional

Names are the exporter's: the checkpoint's without the prefix of the text model. Four recipes are shipped, as files
beside this one: recipes/smallest.toml, balanced.toml (the default of int4), best.toml and cuda.toml (that of the CUDA
target). This module knows names and shapes, not tensors.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from qwonnx.export.checkpoint.weight_names import EMBEDDING, HEAD, ExpertTensor, is_never_quantized
from qwonnx.export.errors import RecipeError
from qwonnx.runtime.quantities import bytes_text

SHIPPED = ("smallest", "balanced", "best", "cuda")
DEFAULT_RECIPE = "balanced"  # of int4
NO_RECIPE = "none"  # asks for a preset without exceptions
BLOCK_SIZES = (16, 32, 64, 128, 256)  # that the kernels take: powers of two from 16

_MAX_RECIPE_BYTES = 1 << 20
_SHIPPED_FOLDER = Path(__file__).with_name("recipes")


class Preset(StrEnum):
    """How most weights are stored."""

    FP32 = "fp32"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def bits(self) -> int:
        return {"fp32": 32, "int8": 8, "int4": 4}[self.value]


class FloatType(StrEnum):
    """A type of floats in a weight file."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def bits(self) -> int:
        return 32 if self is FloatType.FLOAT32 else 16


@dataclass(frozen=True, slots=True)
class WeightStorage:
    """How a weight is stored: floats (bits 32 or 16, block_size 0), or codes of 8 or 4 bits with a scale a block.

    floats is the type of the floats, or of the scales.
    """

    bits: int
    block_size: int = 0  # input features that share a scale
    has_zero_points: bool = False  # a zero point a block, packed as codes are; else all are 2 ** (bits - 1)
    floats: FloatType = FloatType.FLOAT32

    @classmethod
    def of_floats(cls, floats: FloatType) -> WeightStorage:
        """A weight that is not quantised."""
        return cls(floats.bits, floats=floats)

    @property
    def is_quantized(self) -> bool:
        return self.bits < 16

    @property
    def name(self) -> str:
        """ "float32", "float16", "bfloat16", "int8" or "int4"."""
        return f"int{self.bits}" if self.is_quantized else self.floats.value

    def num_code_bytes(self, num_parameters: int) -> int:
        """Bytes of the codes, or of the floats."""
        return num_parameters * self.bits // 8

    def num_scale_bytes(self, num_parameters: int) -> int:
        """Bytes of the scales."""
        return num_parameters // self.block_size * self.floats.bits // 8 if self.is_quantized else 0

    def stream_bytes(self, num_rows: int, num_columns: int) -> tuple[int, ...]:
        """Bytes of each tensor that stores a weight: codes or floats, then scales, then zero points."""
        num_parameters = num_rows * num_columns
        if not self.is_quantized:
            return (self.num_code_bytes(num_parameters),)
        codes_and_scales = self.num_code_bytes(num_parameters), self.num_scale_bytes(num_parameters)
        if not self.has_zero_points:
            return codes_and_scales
        return *codes_and_scales, self.num_zero_point_bytes(num_rows, num_columns)

    def num_zero_point_bytes(self, num_rows: int, num_columns: int) -> int:
        """Bytes of the zero points; every row starts a byte."""
        return num_rows * -(-num_columns // self.block_size * self.bits // 8) if self.has_zero_points else 0


FLOAT32 = WeightStorage.of_floats(FloatType.FLOAT32)
BFLOAT16 = WeightStorage.of_floats(FloatType.BFLOAT16)


class Storages(Protocol):
    """Decides how weights are stored: a recipe alone, or a plan that also knows the checkpoint."""

    def storage(self, name: str, shape: tuple[int, ...]) -> WeightStorage: ...

    def floats(self, name: str, shape: tuple[int, ...]) -> WeightStorage:
        """The storage of a weight that is not quantised, if its kernel takes every type of floats."""
        ...


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a recipe: the bits of weights with matching names, in blocks of its own or the recipe's size."""

    pattern: str
    bits: int
    weight_block_size: int | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A preset and the exceptions to it.

    Raises:
        RecipeError: an unknown preset, number of bits or block size, or a rule that matches only weights that are never
            quantised.
    """

    weights: str
    weight_block_size: int  # 0 for fp32
    rules: tuple[Rule, ...] = ()
    # Written for every model, so a rule for experts may match nothing in a dense one.
    shipped: bool = False

    def __post_init__(self) -> None:
        if self.weights not in list(Preset):
            raise RecipeError(f"weights {self.weights!r} is unknown: use one of {', '.join(Preset)}")
        if self.weights != "fp32" or self.weight_block_size != 0:
            _check_block_size(self.weight_block_size)
        for rule in self.rules:
            if not rule.pattern:
                raise RecipeError("a rule has an empty pattern: name the weights it is for")
            if rule.bits not in {preset.bits for preset in Preset}:
                raise RecipeError(f"rule {rule.pattern!r} asks for {rule.bits} bits: use 4, 8 or 32")
            if rule.weight_block_size is not None:
                _check_block_size(rule.weight_block_size)
            if rule.bits != 32 and is_never_quantized(rule.pattern):
                raise RecipeError(
                    f"rule {rule.pattern!r} asks for {rule.bits} bits for weights that are never quantised: remove it"
                )

    @classmethod
    def preset(cls, weights: str, weight_block_size: int = 128) -> Recipe:
        """fp32, int8 or int4 without rules of its own."""
        return cls(weights, 0 if weights == "fp32" else weight_block_size)

    @classmethod
    def choose(
        cls,
        recipe: str | None,
        weights: str | None,
        weight_block_size: int | None,
        default: str = DEFAULT_RECIPE,
    ) -> Recipe:
        """The recipe for a user's three options; None is an option that was not given.

        Args:
            recipe: a shipped recipe's name, "none" for the preset alone, or a path. None: `default` for int4, and the
                preset alone for others.
            weights: the preset. None: the recipe's, or int4. A recipe that starts from another is refused.
            weight_block_size: replaces the recipe's; rules that set a block size keep it.
            default: a shipped recipe: the target's (Target.default_recipe).

        Raises:
            RecipeError: the options contradict each other, or one of them is wrong.
        """
        if recipe is None:
            recipe = default if weights in (None, "int4") else NO_RECIPE
        if recipe == NO_RECIPE:
            return cls.preset(weights or "int4", 128 if weight_block_size is None else weight_block_size)
        if recipe not in SHIPPED and _is_name(recipe):
            raise RecipeError(
                f"there is no recipe {recipe!r}: use {', '.join(SHIPPED)}, {NO_RECIPE}, or a TOML file that exists"
            )
        chosen = cls.named(recipe) if recipe in SHIPPED else cls.load(Path(recipe))
        if weights not in (None, chosen.weights):
            raise RecipeError(
                f"the recipe {recipe} starts from {chosen.weights}, not from {weights}: leave --weights out,"
                f" or choose another recipe ({', '.join(SHIPPED)}, {NO_RECIPE}, or a file)"
            )
        return chosen if weight_block_size is None else replace(chosen, weight_block_size=weight_block_size)

    @classmethod
    def named(cls, name: str) -> Recipe:
        """A shipped recipe: "smallest", "balanced" or "best"."""
        assert name in SHIPPED, name
        return replace(cls.load(_SHIPPED_FOLDER / f"{name}.toml"), shipped=True)

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe file, see the head of this module.

        Raises:
            RecipeError: it cannot be read, is not TOML, or has a missing, unknown or mistyped key.
        """
        try:
            with path.open("rb") as stream:
                content = stream.read(_MAX_RECIPE_BYTES + 1)
        except OSError as error:
            raise RecipeError(
                f"cannot read the recipe {path} ({error.strerror}): give a TOML file, or one of {', '.join(SHIPPED)}"
            ) from error
        if len(content) > _MAX_RECIPE_BYTES:
            raise RecipeError(f"{path} is larger than {bytes_text(_MAX_RECIPE_BYTES)}: it is not a recipe")
        try:
            document = tomllib.loads(content.decode("utf-8"))
        except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are both
            raise RecipeError(f"{path} is not valid TOML ({error}): correct it") from error
        fields = _fields(document, str(path), {"weights": str}, {"weight_block_size": int, "rules": list})
        weights = fields["weights"]
        rules = []
        for index, table in enumerate(fields.get("rules", ())):
            where = f"{path}, rule {index + 1}"
            if not isinstance(table, dict):
                raise RecipeError(f"{where} is not a table: write [[rules]] before its keys")
            rules.append(Rule(**_fields(table, where, {"pattern": str, "bits": int}, {"weight_block_size": int})))
        return cls(weights, fields.get("weight_block_size", 0 if weights == "fp32" else 128), tuple(rules))

    @property
    def quantizes(self) -> bool:
        """Whether some weights may get codes."""
        return any(rule.bits != 32 for rule in self._all_rules())

    def storage(self, name: str, shape: tuple[int, ...]) -> WeightStorage:
        """How to store a weight.

        The block size is halved until it divides the input features. If none from 16 does, the weight stays float32.
        The two expert tensors of a layer run in one kernel with one block size, which therefore divides the input
        features of both.

        Raises:
            RecipeError: a layer's two expert tensors have different block sizes.
        """
        rule = self._rule(name)
        if rule.bits == 32 or len(shape) < 2:
            return FLOAT32
        widths = [shape[-1]]
        if experts := ExpertTensor.of(name):
            widths.append(experts.sibling_shape(shape)[-1])
            other = self._rule(experts.sibling)
            mine, others = self._block_size(rule), self._block_size(other)
            if other.bits != 32 and mine != others:
                raise RecipeError(
                    f"{name} and {experts.sibling} have blocks of {mine} and {others}:"
                    " give both the same weight_block_size"
                )
        block_size = self._block_size(rule)
        while block_size >= BLOCK_SIZES[0]:
            if not any(width % block_size for width in widths):
                return WeightStorage(rule.bits, block_size)
            block_size //= 2
        return FLOAT32

    def notes(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """For display: weights that the recipe quantises and that no block divides; raises as `storage` does."""
        wanted = [name for name, shape in shapes.items() if len(shape) > 1 and self._rule(name).bits != 32]
        names = [name for name in wanted if not self.storage(name, shapes[name]).is_quantized]
        if not names:
            return ()
        return (
            f"recipe: {len(names)} weights stay float32, because blocks of {BLOCK_SIZES[0]} do not divide their"
            f" input features ({names[0]} of shape {list(shapes[names[0]])})",
        )

    def floats(self, name: str, shape: tuple[int, ...]) -> WeightStorage:
        """float32: a recipe does not know the checkpoint."""
        return FLOAT32

    def check_rules_match(self, names: Iterable[str]) -> None:
        """Refuse rules that match no weight.

        Args:
            names: of all weights of the model.

        Raises:
            RecipeError: a rule matches no name, and the recipe is not a shipped one.
        """
        known = tuple(names)
        for rule in () if self.shipped else self.rules:
            if not any(fnmatchcase(name, rule.pattern) for name in known):
                raise RecipeError(
                    f"rule {rule.pattern!r} matches no weight of this model: correct it, as in"
                    f" {next(iter(known), HEAD)!r}"
                )

    def _all_rules(self) -> tuple[Rule, ...]:
        # A row of the embedding is all that the model knows of a token, and each token reads one row: its bytes cost
        # little time. A tied head is this tensor too.
        embedding = (Rule(EMBEDDING, 8),) if self.weights == "int4" else ()
        return (*self.rules, *embedding, Rule("*", Preset(self.weights).bits))

    def _rule(self, name: str) -> Rule:
        if is_never_quantized(name):
            return Rule(name, 32)
        return next(rule for rule in self._all_rules() if fnmatchcase(name, rule.pattern))

    def _block_size(self, rule: Rule) -> int:
        return rule.weight_block_size or self.weight_block_size or 128


def _is_name(recipe: str) -> bool:
    """Whether a text was meant as a recipe's name: no file has it, and it has no suffix and no folder."""
    path = Path(recipe)
    return path.name == recipe and not path.suffix and not path.exists()


def _check_block_size(value: int) -> None:
    if value not in BLOCK_SIZES:
        raise RecipeError(f"weight_block_size {value} is not supported: use one of {', '.join(map(str, BLOCK_SIZES))}")


def _fields(table: dict[str, Any], where: str, needed: dict[str, type], optional: dict[str, type]) -> dict[str, Any]:
    """Check the keys and the types of the values of a table, and return it."""
    kinds = needed | optional
    if odd := sorted(table.keys() - kinds.keys()):
        raise RecipeError(f"{where} has the unknown key {odd[0]!r}: it may have {', '.join(kinds)}")
    if missing := sorted(needed.keys() - table.keys()):
        raise RecipeError(f"{where} has no {missing[0]!r}: add it")
    for key, value in table.items():
        # isinstance accepts bool as int, but true is not a number of bits
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            raise RecipeError(f"{where} has {key} = {value!r}: it must be of type {kinds[key].__name__}")
    return table
