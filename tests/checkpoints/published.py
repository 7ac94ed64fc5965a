"""The published sizes of Qwen 3.5: the config.json of each, with the true shapes.

Sources: the published config.json files and model cards; numbers of parameters are those of the model cards' tables or
follow from the shapes. The dense models' 9B is untied by its number of parameters alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.checkpoints.config_json import (
    COMMON_TEXT,
    DENSE_ARCHITECTURES,
    MOE_ARCHITECTURES,
    Json,
    config_json,
    text_config,
)
from tests.checkpoints.tokenizer import SPECIAL_TOKENS

# Ids of the special tokens, which end the real vocabulary.
TOKEN_IDS: Mapping[str, int] = {token: 248044 + index for index, token in enumerate(SPECIAL_TOKENS)}

_TEXT: Json = {
    **COMMON_TEXT,
    "vocab_size": 248320,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "mtp_num_hidden_layers": 1,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
}


def _vision(depth: int, hidden: int, heads: int, intermediate: int) -> Json:
    return {
        "depth": depth,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_heads": heads,
        "num_position_embeddings": 2304,
    }


_LARGE_VISION, _SMALL_VISION = _vision(27, 1152, 16, 4304), _vision(24, 1024, 16, 4096)


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """One size. `text` and `vision` are those parts of its config.json; numbers count parameters."""

    name: str
    text: Json
    vision: Json
    num_shards: int  # of the BF16 checkpoint if known, else a likely number for its size
    text_parameters: int
    vision_parameters: int
    mtp_parameters: int

    @property
    def architecture(self) -> str:
        return (MOE_ARCHITECTURES if self.text.get("num_experts") else DENSE_ARCHITECTURES)[0]

    def config(self) -> Json:
        """config.json, whole."""
        text = text_config(self.architecture, self.text, TOKEN_IDS, {"tie_word_embeddings": self.is_tied})
        return config_json(self.architecture, text, TOKEN_IDS, vision=self.vision)

    @property
    def is_tied(self) -> bool:
        return bool(self.text.get("tie_word_embeddings"))


def _moe(layers: int, hidden: int, heads: int, value_heads: int, experts: int, top_k: int, intermediate: int) -> Json:
    return {
        **_dense(layers, hidden, heads, 2, value_heads),
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": intermediate,
        "shared_expert_intermediate_size": intermediate,
        "router_aux_loss_coef": 0.001,
    }


def _dense(layers: int, hidden: int, heads: int, kv_heads: int, value_heads: int, **more: object) -> Json:
    return {
        **_TEXT,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "linear_num_value_heads": value_heads,
        **more,
    }


PUBLISHED: Mapping[str, PublishedModel] = {
    model.name: model
    for model in (
        PublishedModel(
            "397B-A17B",
            _moe(60, 4096, 32, 64, 512, 10, 1024),
            _LARGE_VISION,
            94,
            396_346_350_336,
            456_010_480,
            6_595_568_128,
        ),
        PublishedModel(
            "122B-A10B",
            _moe(48, 3072, 32, 64, 256, 8, 1024),
            _LARGE_VISION,
            39,
            122_111_526_912,
            451_290_864,
            2_523_679_232,
        ),
        PublishedModel(
            "35B-A3B", _moe(40, 2048, 16, 32, 256, 8, 512), _LARGE_VISION, 14, 34_660_610_688, 446_571_248, 844_640_768
        ),
        PublishedModel(
            "27B",
            _dense(64, 5120, 24, 4, 48, intermediate_size=17408),
            _LARGE_VISION,
            12,
            26_895_998_464,
            460_730_096,
            424_699_392,
        ),
        PublishedModel(
            "9B",
            _dense(32, 4096, 16, 4, 32, intermediate_size=12288),
            _LARGE_VISION,
            4,
            8_953_803_264,
            456_010_480,
            243_290_624,
        ),
        PublishedModel(
            "4B",
            _dense(32, 2560, 16, 4, 32, intermediate_size=9216, tie_word_embeddings=True),
            _SMALL_VISION,
            2,
            4_205_751_296,
            333_514_240,
            120_599_552,
        ),
        PublishedModel(
            "2B",
            _dense(24, 2048, 8, 2, 16, intermediate_size=6144, tie_word_embeddings=True),
            _SMALL_VISION,
            1,
            1_881_825_088,
            331_416_576,
            60_828_160,
        ),
        PublishedModel(
            "0.8B",
            _dense(24, 1024, 8, 2, 16, intermediate_size=3584, tie_word_embeddings=True),
            _vision(12, 768, 12, 3072),
            1,
            752_393_024,
            100_592_896,
            20_452_864,
        ),
    )
}
