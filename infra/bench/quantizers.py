"""Compares our quantiser with ONNX Runtime's: error of weights, KL divergence and perplexity of a trained model.

    python -m infra.bench.quantizers CHECKPOINT [--tokens 4096] [--blocks 32 64 128] [--bits 4 8] [--artifact]

infra.bench.trained_checkpoint makes CHECKPOINT. Every algorithm quantises the same weights, all matrices but router,
gates and embedding, at the same bits and block size. transformers runs on the dequantised weights in float32, so no
kernel affects the result. The model was not trained on the text that it reads; importance is learnt from a text that it
was trained on. --artifact also exports ours and compares ONNX Runtime's logits with transformers'.

Equal bits: a zero point costs bits / block_size a weight, so at one block size the algorithms store different numbers
of bits. `equal_bits_kl` corrects each mean KL for this: each bit of a uniform quantiser divides the error by 4 (6.02
dB), so it is KL * 4 ** (its bits - our bits). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.bench.judge import Judge, RoundTrip, Verdict
from infra.bench.ort_quantizers import ZERO_POINT_BITS, OrtQuantizer
from infra.bench.trained_checkpoint import training_text
from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.config import load_config
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.evaluation.verify import artifact_logits
from qwonnx.export.quantization.calibration import calibrate
from qwonnx.export.quantization.importance import Importance
from qwonnx.export.quantization.quantize import quantize_blocks
from qwonnx.export.quantization.recipe import FLOAT32, Recipe, Rule, WeightStorage
from qwonnx.runtime.artifact.folder import open_artifact
from tests.export.dequantized import dequantize_blocks


@dataclass(frozen=True, slots=True)
class Algorithm:
    """round_trip(name, weight [rows, in_features], bits, block_size) gives the weight, quantised and dequantised."""

    name: str
    round_trip: RoundTrip
    bits_per_weight: Callable[[int, int], float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an algorithm at one number of bits and one block size."""

    algorithm: str
    bits: int
    block_size: int
    bits_per_weight: float
    verdict: Verdict


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--blocks", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--artifact", action="store_true", help="export ours too, and compare logits")
    options = parser.parse_args(arguments)

    judge = Judge(options.checkpoint, options.tokens)
    importance = learn_importance(options.checkpoint)
    print(f"float model: perplexity {judge.perplexity:.4f} on {judge.num_tokens} tokens", flush=True)
    outcomes = []
    for bits in options.bits:
        for block_size in options.blocks:
            for algorithm in algorithms(importance):
                if algorithm.name == "hqq" and bits == 8:
                    continue  # MatMulNBits takes no floating-point zero points with 8 bits
                outcome = _outcome(judge, algorithm, bits, block_size)
                outcomes.append(outcome)
                print(_line(outcome), flush=True)
    summary: dict[str, Any] = {
        "benchmark": "quantizers",
        "tokens": judge.num_tokens,
        "float_perplexity": round(judge.perplexity, 4),
        "comparisons": [compare(outcomes, bits, size) for bits in options.bits for size in options.blocks],
        "random_weights": random_weights(options.bits, options.blocks),
    }
    if options.artifact:
        summary["artifact_mean_kl"] = _artifact_kl(judge, options.checkpoint)
    print(json.dumps(summary))


def algorithms(importance: Importance) -> Iterator[Algorithm]:
    """Plain rounding, ours without and with importance, then ONNX Runtime's."""

    def symmetric(bits: int, block_size: int) -> float:
        return bits + 32 / block_size

    def weighted(name: str, weight: torch.Tensor, bits: int, block_size: int) -> torch.Tensor:
        return quantized_and_back(weight, bits, block_size, importance_of(importance, name))

    yield Algorithm("plain rounding", lambda name, *which: _plain(*which), symmetric)
    yield Algorithm("search", lambda name, *which: quantized_and_back(*which), symmetric)
    yield Algorithm("search, importance", weighted, symmetric)
    for name in ZERO_POINT_BITS:
        theirs = OrtQuantizer(name)
        yield Algorithm(name, lambda name, *which, theirs=theirs: theirs.round_trip(*which), theirs.bits_per_weight)


def learn_importance(checkpoint: Path) -> Importance:
    """Learn importance from the second half of the text that the model was trained on."""
    text = training_text()
    return calibrate(
        checkpoint,
        WeightSource(Checkpoint.open(checkpoint), load_config(checkpoint)),
        load_config(checkpoint),
        text[len(text) // 2 :],
        lambda done, total: None,
    )


def _outcome(judge: Judge, algorithm: Algorithm, bits: int, block_size: int) -> Outcome:
    preset = Recipe.preset(f"int{bits}", block_size)

    def storage(name: str, shape: tuple[int, ...]) -> WeightStorage:
        return FLOAT32 if name == "embed_tokens.weight" else preset.storage(name, shape)

    verdict = judge.verdict(storage, algorithm.round_trip)
    stored = sum(
        algorithm.bits_per_weight(bits, storage.block_size) * count for storage, count in verdict.num_weights.items()
    )
    return Outcome(algorithm.name, bits, block_size, stored / sum(verdict.num_weights.values()), verdict)


def random_weights(all_bits: Sequence[int], blocks: Sequence[int]) -> list[dict[str, Any]]:
    """Relative squared error on normal weights and on Student-t ones with 4 and 8 degrees of freedom."""
    generator = np.random.default_rng(0)
    drawn = {
        "normal": generator.standard_normal((2048, 512)),
        "student t, 8": generator.standard_t(8, (2048, 512)),
        "student t, 4": generator.standard_t(4, (2048, 512)),
    }
    plain_and_search = list(algorithms(Importance({})))[:2]
    theirs = list(algorithms(Importance({})))[3:]
    rows = []
    for distribution, values in drawn.items():
        weight = torch.tensor(values, dtype=torch.float32)
        for bits in all_bits:
            for block_size in blocks:
                errors = {
                    algorithm.name: float(
                        (algorithm.round_trip("", weight, bits, block_size) - weight).square().mean()
                        / weight.square().mean()
                    )
                    for algorithm in (*plain_and_search, *theirs)
                    if (algorithm.name, bits) != ("hqq", 8)
                }
                rounded = {name: float(f"{error:.4g}") for name, error in errors.items()}
                rows.append({"weights": distribution, "bits": bits, "block_size": block_size, **rounded})
                print(rows[-1], flush=True)
    return rows


def quantized_and_back(
    weight: torch.Tensor, bits: int, block_size: int, importance: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """The weight, quantised and dequantised. importance has one vector for each group of rows."""
    groups: list[torch.Tensor | None] = [*importance] if importance else [None]
    height = len(weight) // len(groups)
    restored = []
    for rows, vector in zip(torch.split(weight, height), groups, strict=True):
        codes = torch.empty((height, rows.shape[1] * bits // 8), dtype=torch.uint8)
        scales = torch.empty((height, rows.shape[1] // block_size))
        quantize_blocks(rows, bits, codes, scales, vector)
        restored.append(dequantize_blocks(codes, scales, bits))
    return torch.cat(restored)


def _plain(weight: torch.Tensor, bits: int, block_size: int) -> torch.Tensor:
    """Rounding with the plain step, which follows from the block's signed extreme."""
    half = 1 << (bits - 1)
    blocks = weight.reshape(-1, block_size)
    extremes = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    steps = torch.where(extremes == 0, 1.0, extremes / -half)
    return ((blocks / steps).round().clamp(-half, half - 1) * steps).view(weight.shape)


def importance_of(importance: Importance, name: str) -> list[torch.Tensor] | None:
    """One vector for each group of the weight's rows; None if all input features are equal."""
    groups = importance.by_name.get(name)
    return None if groups is None else [group.float() for group in groups]


def compare(outcomes: list[Outcome], bits: int, block_size: int) -> dict[str, Any]:
    """All algorithms at one block size, by their own KL and at equal bits."""
    here = [outcome for outcome in outcomes if (outcome.bits, outcome.block_size) == (bits, block_size)]
    ours = here[1].bits_per_weight
    return {
        "bits": bits,
        "block_size": block_size,
        **{
            outcome.algorithm: {
                "bits_per_weight": round(outcome.bits_per_weight, 4),
                "weight_error": float(f"{outcome.verdict.weight_error:.4g}"),
                "mean_kl": float(f"{outcome.verdict.mean_kl:.4g}"),
                "median_kl": float(f"{outcome.verdict.median_kl:.4g}"),
                "equal_bits_kl": float(f"{outcome.verdict.mean_kl * 4 ** (outcome.bits_per_weight - ours):.4g}"),
                "perplexity": round(outcome.verdict.perplexity, 4),
                "top1_agreement": round(outcome.verdict.top1_agreement, 4),
            }
            for outcome in here
        },
    }


def _line(outcome: Outcome) -> str:
    verdict = outcome.verdict
    return (
        f"{outcome.bits} bits, blocks of {outcome.block_size:3}, {outcome.algorithm:18}"
        f" {outcome.bits_per_weight:.4f} bits/weight, error {verdict.weight_error:.4e},"
        f" KL {verdict.mean_kl:.4e} +- {verdict.kl_error:.1e}, median {verdict.median_kl:.4e},"
        f" perplexity {verdict.perplexity:.4f}, top-1 {verdict.top1_agreement:.4f}, {verdict.seconds:.2f} s"
    )


def _artifact_kl(judge: Judge, checkpoint: Path) -> float:
    """Mean KL of an exported artifact in ONNX Runtime: int4 in blocks of 128 by our search, the embedding in float."""
    from qwonnx.export.pipeline import ExportOptions, export_checkpoint

    recipe = Recipe("int4", 128, (Rule("embed_tokens.weight", 32),))
    with tempfile.TemporaryDirectory() as folder:
        export_checkpoint(checkpoint, Path(folder) / "artifact", ExportOptions(recipe=recipe, activations="float32"))
        opened = open_artifact(Path(folder) / "artifact")
        logits = [artifact_logits(opened, sequence.numpy()) for sequence in judge.sequences]
    return float(judge.divergence(torch.from_numpy(np.stack(logits)).double().log_softmax(-1).float()).mean())


if __name__ == "__main__":
    main()
