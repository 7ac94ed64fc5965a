"""How weights are stored, and recipes that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwonnx.export.errors import RecipeError
from qwonnx.export.quantization.recipe import FLOAT32, SHIPPED, Recipe, Rule, WeightStorage
from qwonnx.export.quantization.size_table import stored_bytes

pytestmark = pytest.mark.fast

GATE_UP, DOWN = "layers.3.mlp.experts.gate_up_proj", "layers.3.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layers.0.mlp.gate.weight", (256, 2048)),
        ("layers.0.mlp.shared_expert_gate.weight", (1, 2048)),
        ("layers.0.linear_attn.in_proj_a.weight", (32, 2048)),
        ("layers.0.linear_attn.in_proj_b.weight", (32, 2048)),
        ("layers.0.linear_attn.conv1d.weight", (8192, 1, 4)),
        ("layers.0.linear_attn.decay_scale", (32,)),
        ("layers.0.linear_attn.dt_bias", (32,)),
        ("layers.0.linear_attn.norm.weight", (128,)),
        ("layers.0.input_layernorm.weight", (2048,)),
        ("norm.weight", (2048,)),
        ("layers.0.anything", (4096,)),
    ],
)
@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_what_is_small_and_sensitive_stays_float(weights: str, name: str, shape: tuple[int, ...]) -> None:
    assert Recipe.preset(weights).storage(name, shape) == FLOAT32


@pytest.mark.parametrize(("weights", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize(
    "name",
    [
        "layers.0.mlp.gate_proj.weight",  # a dense model's; not to be taken for the router, mlp.gate
        "layers.0.mlp.shared_expert.gate_proj.weight",
        "layers.0.linear_attn.in_proj_qkv.weight",
        "layers.0.linear_attn.out_proj.weight",
        "layers.0.self_attn.q_proj.weight",
        "lm_head.weight",
    ],
)
def test_a_preset_quantises_the_projections(weights: str, bits: int, name: str) -> None:
    storage = Recipe.preset(weights).storage(name, (64, 256))
    assert storage == WeightStorage(bits, 128)
    assert storage.name == f"int{bits}"


def test_embeddings_keep_eight_bits_in_int4_unless_a_rule_says_otherwise() -> None:
    embedding = ("embed_tokens.weight", (1000, 256))
    assert Recipe.preset("int4").storage(*embedding).bits == 8
    assert Recipe("int4", 128, (Rule("embed_*", 4),)).storage(*embedding).bits == 4


def test_the_first_rule_that_matches_decides() -> None:
    rules = (Rule("layers.1.*", 32), Rule("layers.*.self_attn.*", 8, 32), Rule("layers.*", 4))
    recipe = Recipe("int8", 64, rules)
    assert recipe.storage("layers.1.self_attn.q_proj.weight", (8, 128)) == FLOAT32
    assert recipe.storage("layers.2.self_attn.q_proj.weight", (8, 128)) == WeightStorage(8, 32)
    assert recipe.storage("layers.2.linear_attn.out_proj.weight", (8, 128)) == WeightStorage(4, 64)
    assert recipe.storage("lm_head.weight", (8, 128)) == WeightStorage(8, 64)


def test_a_wide_rule_leaves_alone_what_is_never_quantised() -> None:
    assert Recipe("fp32", 0, (Rule("*", 4),)).storage("layers.0.mlp.gate.weight", (16, 128)) == FLOAT32


def test_blocks_are_halved_until_they_divide_the_input_features() -> None:
    recipe = Recipe.preset("int4", 128)
    assert recipe.storage("layers.0.self_attn.o_proj.weight", (8, 96)).block_size == 32


def test_a_weight_that_no_block_divides_stays_float32_and_is_named() -> None:
    recipe = Recipe.preset("int4", 128)
    odd = {"layers.0.self_attn.o_proj.weight": (8, 24), GATE_UP: (16, 2 * 37, 256), DOWN: (16, 256, 37)}
    assert {recipe.storage(name, shape) for name, shape in odd.items()} == {FLOAT32}
    sound = {"norm.weight": (24,), "layers.0.mlp.gate.weight": (16, 24), "layers.0.self_attn.q_proj.weight": (8, 32)}
    assert recipe.notes(sound) == ()
    assert recipe.notes(sound | odd) == (
        "recipe: 3 weights stay float32, because blocks of 16 do not divide their input features"
        " (layers.0.self_attn.o_proj.weight of shape [8, 24])",
    )
    assert Recipe.preset("fp32", 0).notes(odd) == ()


def test_both_expert_tensors_share_a_block_size_that_divides_the_input_features_of_both() -> None:
    recipe = Recipe.preset("int4", 128)
    assert recipe.storage(GATE_UP, (16, 2 * 64, 256)).block_size == 64
    assert recipe.storage(DOWN, (16, 256, 64)).block_size == 64


def test_expert_tensors_may_differ_in_bits_but_not_in_blocks() -> None:
    recipe = Recipe("int4", 128, (Rule("*.experts.down_proj", 8),))
    assert recipe.storage(GATE_UP, (16, 256, 256)) == WeightStorage(4, 128)
    assert recipe.storage(DOWN, (16, 256, 128)) == WeightStorage(8, 128)
    recipe = Recipe("int4", 128, (Rule("*.experts.down_proj", 8, 32),))
    for name, shape in ((GATE_UP, (16, 256, 256)), (DOWN, (16, 256, 128))):
        with pytest.raises(RecipeError, match="give both the same weight_block_size"):
            recipe.storage(name, shape)


def test_bytes_of_codes_and_scales() -> None:
    assert WeightStorage(4, 32).num_code_bytes(1024) == 512
    assert WeightStorage(4, 32).num_scale_bytes(1024) == 128
    assert FLOAT32.num_code_bytes(10) == 40
    assert FLOAT32.num_scale_bytes(10) == 0


def test_a_recipe_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'weights = "int4"\nweight_block_size = 64\n'
        '[[rules]]\npattern = "*.out_proj.weight"\nbits = 8\nweight_block_size = 32\n'
        '[[rules]]\npattern = "lm_head.weight"\nbits = 32\n'
    )
    rules = (Rule("*.out_proj.weight", 8, 32), Rule("lm_head.weight", 32))
    assert Recipe.load(path) == Recipe("int4", 64, rules)


def test_a_recipe_file_needs_nothing_but_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    for weights in ("fp32", "int8", "int4"):
        path.write_text(f'weights = "{weights}"')
        assert Recipe.load(path) == Recipe.preset(weights)


RULE = 'weights = "int4"\n[[rules]]\n'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("weights = ", "not valid TOML"),
        ("", "no 'weights'"),
        ("weights = 4", "weights = 4"),
        ('weights = "int5"', "use one of fp32, int8, int4"),
        ('weights = "int4"\nblock = 32', "unknown key 'block'"),
        ('weights = "int4"\nweight_block_size = 48', "weight_block_size 48"),
        ('weights = "int4"\nweight_block_size = true', "must be of type int"),
        ('weights = "int4"\nrules = [1]', "rule 1 is not a table"),
        (RULE + "bits = 8", "no 'pattern'"),
        (RULE + 'pattern = "*"', "no 'bits'"),
        (RULE + 'pattern = ""\nbits = 8', "empty pattern"),
        (RULE + 'pattern = "*"\nbits = 3', "3 bits"),
        (RULE + 'pattern = "*"\nbits = true', "must be of type int"),
        (RULE + 'pattern = "*"\nbits = 8\nweight_block_size = 8', "weight_block_size 8"),
        (RULE + 'pattern = "layers.*.mlp.gate.weight"\nbits = 8', "never quantised"),
    ],
)
def test_anything_odd_in_a_recipe_file_is_named(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(content)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"missing\.toml"):
        Recipe.load(tmp_path / "missing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not valid TOML"):
        Recipe.load(tmp_path / "binary.toml")


def test_a_rule_that_matches_no_weight_is_refused_by_name() -> None:
    recipe = Recipe("int4", 128, (Rule("layers.*", 8), Rule("layer.0.*", 32)))
    recipe.check_rules_match(["layers.0.x", "layer.0.y"])
    with pytest.raises(RecipeError, match=r"'layer\.0\.\*' matches no weight"):
        recipe.check_rules_match(["layers.0.x", "lm_head.weight"])


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_serves_every_model_and_quantises_no_router(name: str) -> None:
    recipe = Recipe.choose(name, None, None)
    assert recipe == Recipe.choose(name, "int4", None)
    recipe.check_rules_match(["embed_tokens.weight"])  # a dense model has no experts for the rules of experts
    assert recipe.storage("layers.0.mlp.gate.weight", (256, 2048)) == FLOAT32
    gate_up = recipe.storage(GATE_UP, (256, 1024, 2048))
    down = recipe.storage(DOWN, (256, 2048, 512))
    assert gate_up.is_quantized
    assert down.block_size == gate_up.block_size


def test_shipped_recipes_are_ordered_by_the_bytes_they_take() -> None:
    weights = {
        "embed_tokens.weight": (1024, 2048),
        "lm_head.weight": (1024, 2048),
        GATE_UP: (16, 1024, 2048),
        DOWN: (16, 2048, 512),
        "layers.0.linear_attn.in_proj_qkv.weight": (8192, 2048),
        "layers.0.linear_attn.out_proj.weight": (2048, 4096),
        "layers.3.self_attn.q_proj.weight": (8192, 2048),
        "layers.0.mlp.shared_expert.down_proj.weight": (2048, 512),
    }

    def num_bytes(recipe: Recipe) -> int:
        return sum(stored_bytes(shape, recipe.storage(name, shape)) for name, shape in weights.items())

    sizes = [num_bytes(Recipe.named(name)) for name in ("smallest", "balanced", "best")]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] < num_bytes(Recipe.preset("int8"))


def test_int4_is_the_balanced_recipe_unless_none_is_asked_for() -> None:
    assert Recipe.choose(None, None, None) == Recipe.choose(None, "int4", None) == Recipe.named("balanced")
    assert Recipe.choose("none", None, None) == Recipe.choose("none", "int4", None) == Recipe.preset("int4")
    assert Recipe.choose(None, "int8", None) == Recipe.preset("int8")
    assert Recipe.choose(None, "fp32", None) == Recipe.choose("none", "fp32", None) == Recipe.preset("fp32")


def test_a_block_size_that_is_asked_for_replaces_the_recipes(tmp_path: Path) -> None:
    assert Recipe.choose("none", "int8", 32) == Recipe.preset("int8", 32)
    assert Recipe.choose("best", None, 16).weight_block_size == 16
    path = tmp_path / "recipe.toml"
    path.write_text('weights = "int4"\n[[rules]]\npattern = "*.out_proj.weight"\nbits = 8\nweight_block_size = 64\n')
    assert Recipe.choose(str(path), None, 32) == Recipe("int4", 32, (Rule("*.out_proj.weight", 8, 64),))
    with pytest.raises(RecipeError, match="weight_block_size 24"):
        Recipe.choose(None, None, 24)


def test_weights_that_contradict_a_recipe_are_refused() -> None:
    with pytest.raises(RecipeError, match="best starts from int4, not from int8: leave --weights out"):
        Recipe.choose("best", "int8", None)
