"""Fixtures of the planning's tests: models by name, and their traces, each made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import onnx_ir as ir
import pytest

from qwonnx.export.checkpoint.config import ModelConfig, parse_config
from qwonnx.export.modeling.trace import trace_decoder
from tests.checkpoints.config_json import HEADS_OF_64, TINY_DENSE, TINY_MOE, TINY_TEXT, Json, config_json, text_config
from tests.checkpoints.published import PUBLISHED
from tests.checkpoints.tokenizer import token_ids

# Two layers, one of each kind. The published sizes have projections that are too large to be joined.
MODELS = ("tiny-moe", "tiny-dense", "tiny-tied", "35B-A3B", "27B")
_LAYERS = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}


@dataclass(frozen=True, slots=True)
class Traced:
    """A model as traced; lowering works on clones."""

    config: ModelConfig
    model: ir.Model


@pytest.fixture(scope="session")
def traced() -> Callable[[str], Traced]:
    """The trace of one of MODELS."""

    @cache
    def trace(name: str) -> Traced:
        config = parse_config(_document(name))
        if name == "tiny-tied":  # what is tied is only seen after tracing
            return Traced(config, trace("tiny-dense").model)
        return Traced(config, trace_decoder(config))

    return trace


def _document(name: str) -> Json:
    if not name.startswith("tiny-"):
        document = PUBLISHED[name].config()
        document["text_config"].update(_LAYERS)
        return document
    is_moe = name == "tiny-moe"
    architecture = "Qwen3_5MoeForConditionalGeneration" if is_moe else "Qwen3_5ForConditionalGeneration"
    base = {**TINY_TEXT, **HEADS_OF_64, **(TINY_MOE if is_moe else TINY_DENSE)}
    tied = {"tie_word_embeddings": name == "tiny-tied"}
    return config_json(architecture, text_config(architecture, base, token_ids(), {**_LAYERS, **tied}), token_ids())
