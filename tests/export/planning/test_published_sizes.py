"""The eight published sizes, compared with numbers that others derived, or that the files on the hub have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from qwonnx.export.checkpoint.config import ModelConfig, parse_config
from qwonnx.export.checkpoint.weight_names import Role, role_of
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.planning.decoder_weights import planned_shapes, planned_weights
from qwonnx.export.planning.states import state_sizes
from qwonnx.export.planning.traffic import active_parameters, decode_traffic
from qwonnx.export.quantization.recipe import Recipe, Rule
from qwonnx.export.targets.register import choose_target
from tests.checkpoints.published import PUBLISHED

pytestmark = pytest.mark.fast


@dataclass(frozen=True, slots=True)
class Derived:
    """Known facts of one size. active is in billions; keys, values and convolution states are of bfloat16."""

    text_params: int
    expert_params: int
    active: float
    kv_bytes_per_token: int
    recurrent_bytes: int
    conv_bytes: int


DERIVED = {
    "397B-A17B": Derived(396_346_350_336, 386_547_056_640, 16.33, 30_720, 188_743_680, 3_317_760),
    "122B-A10B": Derived(122_111_526_912, 115_964_116_992, 9.01, 24_576, 150_994_944, 2_654_208),
    "35B-A3B": Derived(34_660_610_688, 32_212_254_720, 2.95, 20_480, 62_914_560, 1_474_560),
    "27B": Derived(26_895_998_464, 0, 25.6, 65_536, 150_994_944, 2_949_120),
    "9B": Derived(8_953_803_264, 0, 7.94, 32_768, 50_331_648, 1_179_648),
    "4B": Derived(4_205_751_296, 0, 4.21, 32_768, 50_331_648, 1_179_648),
    "2B": Derived(1_881_825_088, 0, 1.88, 12_288, 18_874_368, 663_552),
    "0.8B": Derived(752_393_024, 0, 0.75, 12_288, 18_874_368, 663_552),
}


def config_of(size: str) -> ModelConfig:
    return parse_config(PUBLISHED[size].config())


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_the_published_models(size: str) -> None:
    shapes, derived = planned_shapes(config_of(size)), DERIVED[size]
    assert sum(math.prod(shape) for shape in shapes.values()) == derived.text_params
    experts = [shape for name, shape in shapes.items() if role_of(name, shape) is Role.EXPERTS]
    assert sum(map(math.prod, experts)) == derived.expert_params


@pytest.mark.parametrize("size", PUBLISHED)
def test_active_parameters_count_chosen_experts_and_the_head(size: str) -> None:
    config = config_of(size)
    stored = planned_weights(config, Recipe.preset("int4"), choose_target())
    assert active_parameters(config, stored) / 1e9 == pytest.approx(DERIVED[size].active, abs=0.03)


@pytest.mark.parametrize("size", PUBLISHED)
def test_states_are_the_published_models(size: str) -> None:
    states, derived = state_sizes(config_of(size)), DERIVED[size]
    assert states.kv_bytes_per_token(KvType.FLOAT32) == 2 * derived.kv_bytes_per_token
    assert states.kv_bytes_per_token(KvType.INT8) == derived.kv_bytes_per_token // 2
    assert states.kv_bytes_per_token(KvType.INT4) == derived.kv_bytes_per_token // 4
    assert states.recurrent_bytes == derived.recurrent_bytes
    assert states.conv_bytes == 2 * derived.conv_bytes  # float32 here


@pytest.mark.parametrize(("size", "gigabytes"), [("397B-A17B", 13.0), ("122B-A10B", 7.4), ("35B-A3B", 2.5)])
def test_bytes_read_for_a_token_are_those_of_others(size: str, gigabytes: float) -> None:
    # Experts in 4 bits, all else in 8: the reference has no scales for those 8 bits, but a float32 router has more.
    config = config_of(size)
    recipe = Recipe("int8", 128, (Rule("*.experts.*", 4),))
    stored = planned_weights(config, recipe, choose_target())
    traffic = decode_traffic(config, stored, state_sizes(config), context=1, sequences=1, kv=KvType.FLOAT32)
    assert traffic.weights / 1e9 == pytest.approx(gigabytes, rel=0.06)
