"""Loss from storing each kind of weight in 4 bits, and from the shipped recipes.

    python -m infra.bench.recipes CHECKPOINT [--tokens 4096]

infra.bench.trained_checkpoint makes CHECKPOINT; transformers runs on dequantised weights, as in infra.bench.quantizers.
First only one kind of weight is stored in 4 bits, and all others in float32. Then come whole recipes, without and with
importance. Sizes are of Qwen3.5-35B-A3B: bytes of the text model, and bytes that one token reads (its experts, and all
other weights but the embedding). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from infra.bench.judge import Judge, Verdict
from infra.bench.quantizers import importance_of, learn_importance, quantized_and_back
from qwonnx.export.quantization.importance import Importance
from qwonnx.export.quantization.recipe import FLOAT32, SHIPPED, Recipe, WeightStorage
from qwonnx.export.quantization.size_table import stored_bytes
from tests.checkpoints.config_json import GEOMETRY_TEXT
from tests.checkpoints.tensors import lm_head, text_tensors

KINDS = {
    "embedding": "embed_tokens.weight",
    "lm_head": "lm_head.weight",
    "GDN in_proj_qkv": "*.linear_attn.in_proj_qkv.weight",
    "GDN in_proj_z": "*.linear_attn.in_proj_z.weight",
    "GDN out_proj": "*.linear_attn.out_proj.weight",
    "attention q, k, v": "*.self_attn.[qkv]_proj.weight",
    "attention o_proj": "*.self_attn.o_proj.weight",
    "shared expert": "*.shared_expert.*",
    "experts gate_up": "*.experts.gate_up_proj",
    "experts down": "*.experts.down_proj",
}
PUBLISHED_LAYERS, PUBLISHED_VOCABULARY = 40, 248320


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args(arguments)
    judge, importance = Judge(options.checkpoint, options.tokens), learn_importance(options.checkpoint)
    rows = [*kinds(judge), *whole(judge, importance)]
    print(json.dumps({"benchmark": "recipes", "tokens": judge.num_tokens, "rows": rows}))


def kinds(judge: Judge) -> list[dict[str, Any]]:
    """One kind of weight in 4 bits, in blocks of 128."""
    preset, rows = Recipe.preset("int4"), []
    for kind, pattern in KINDS.items():

        def storage(name: str, shape: tuple[int, ...], pattern: str = pattern) -> WeightStorage:
            return WeightStorage(4, preset.storage(name, shape).block_size) if fnmatchcase(name, pattern) else FLOAT32

        share, active = published_share(pattern)
        rows.append(
            {
                "kind": kind,
                "share_of_parameters": round(share, 4),
                "share_of_a_tokens_parameters": round(active, 4),
                **_numbers(judge.verdict(storage, _search)),
            }
        )
        print(rows[-1], flush=True)
    return rows


def whole(judge: Judge, importance: Importance) -> list[dict[str, Any]]:
    """The shipped recipes, and plain bits in blocks of several sizes."""
    recipes = {f"none, blocks of {size}": Recipe.preset("int4", size) for size in (32, 64, 128)}
    recipes |= {name: Recipe.named(name) for name in SHIPPED}
    recipes["int8"] = Recipe.preset("int8")

    def weighted(name: str, weight: torch.Tensor, bits: int, block_size: int) -> torch.Tensor:
        return quantized_and_back(weight, bits, block_size, importance_of(importance, name))

    rows = []
    for name, recipe in recipes.items():
        total, active = published_bytes(recipe)
        sizes = {"recipe": name, "gb": round(total / 1e9, 2), "gb_a_token": round(active / 1e9, 3)}
        for calibrated, round_trip in ((False, _search), (True, weighted)):
            rows.append({**sizes, "calibrated": calibrated, **_numbers(judge.verdict(recipe.storage, round_trip))})
            print(rows[-1], flush=True)
    return rows


def published_weights() -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the text model of 35B-A3B."""
    layer_types = (["linear_attention"] * 3 + ["full_attention"]) * (PUBLISHED_LAYERS // 4)
    text = {**GEOMETRY_TEXT, "vocab_size": PUBLISHED_VOCABULARY, "layer_types": layer_types}
    return [(plan.name, plan.shape) for plan in (*text_tensors(text), lm_head(text))]


def published_bytes(recipe: Recipe) -> tuple[int, float]:
    """Bytes of the model, and those that a token reads."""
    sizes = [(name, stored_bytes(shape, recipe.storage(name, shape))) for name, shape in published_weights()]
    return sum(size for _, size in sizes), sum(size * _used(name) for name, size in sizes)


def published_share(pattern: str) -> tuple[float, float]:
    """Share of the weights that match in all parameters, and in those that a token reads."""
    counts = [(name, float(math.prod(shape))) for name, shape in published_weights()]
    total, active = sum(count for _, count in counts), sum(count * _used(name) for name, count in counts)
    matched = [(name, count) for name, count in counts if fnmatchcase(name, pattern)]
    return sum(count for _, count in matched) / total, sum(count * _used(name) for name, count in matched) / active


def _used(name: str) -> float:
    """Fraction of a weight that one token reads."""
    if name == "embed_tokens.weight":
        return 0.0
    experts = GEOMETRY_TEXT["num_experts_per_tok"] / GEOMETRY_TEXT["num_experts"]
    return float(experts) if ".experts." in name else 1.0


def _search(name: str, weight: torch.Tensor, bits: int, block_size: int) -> torch.Tensor:
    return quantized_and_back(weight, bits, block_size)


def _numbers(verdict: Verdict) -> dict[str, float]:
    return {
        "mean_kl": float(f"{verdict.mean_kl:.4g}"),
        "median_kl": float(f"{verdict.median_kl:.4g}"),
        "perplexity": round(verdict.perplexity, 4),
        "top1_agreement": round(verdict.top1_agreement, 4),
    }


if __name__ == "__main__":
    main()
