"""Measures how quantised weights change a float model's predictions of a text that it was not trained on."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from infra.bench.trained_checkpoint import held_out_text
from qwonnx.export.quantization.recipe import WeightStorage

_SEQUENCE_TOKENS = 256
_SEQUENCES_AT_ONCE = 4
RoundTrip = Callable[[str, torch.Tensor, int, int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Verdict:
    """KL in nats a token, float model to quantised, with its standard error."""

    weight_error: float  # squared error over squared weights, of the quantised weights
    mean_kl: float
    kl_error: float
    median_kl: float  # a token that is routed to other experts can weigh as much as a thousand others in the mean
    perplexity: float
    top1_agreement: float
    num_weights: Counter[WeightStorage]
    seconds: float  # of processor time, to quantise


class Judge:
    """Holds transformers' model in float32 and its predictions."""

    def __init__(self, checkpoint: Path, num_tokens: int) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        ids = tokenizer.encode(held_out_text()[: 8 * num_tokens], add_special_tokens=False).ids[:num_tokens]
        self.sequences = torch.tensor(ids[: len(ids) // _SEQUENCE_TOKENS * _SEQUENCE_TOKENS]).view(-1, _SEQUENCE_TOKENS)
        self._floats = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._expected = self._log_probabilities()

    @property
    def num_tokens(self) -> int:
        return self.sequences.numel()

    @property
    def perplexity(self) -> float:
        """Perplexity of the float model, per token."""
        return self._perplexity(self._expected)

    def verdict(self, storage_of: Callable[[str, tuple[int, ...]], WeightStorage], round_trip: RoundTrip) -> Verdict:
        """Quantise weights, and run the model.

        Args:
            storage_of: (name, shape) -> how a weight is stored, as in a recipe.
            round_trip: (name, weight [rows, in_features], bits, block_size) -> the weight, quantised and dequantised.
        """
        state = self._model.state_dict()
        lost = total = seconds = 0.0
        num_weights: Counter[WeightStorage] = Counter()
        for name, weight in self._floats.items():
            ours = re.sub(r"^model\.(language_model\.)?", "", name)
            storage = storage_of(ours, tuple(weight.shape))
            if not storage.is_quantized or ours.endswith("A_log"):
                continue
            rows = weight.reshape(-1, weight.shape[-1])
            started = time.process_time()
            rounded = round_trip(ours, rows, storage.bits, storage.block_size)
            seconds += time.process_time() - started
            lost += float((rounded - rows).double().square().sum())
            total += float(rows.double().square().sum())
            num_weights[storage] += rows.numel()
            state[name].copy_(rounded.view(weight.shape))
        log_probabilities = self._log_probabilities()
        self._model.load_state_dict(self._floats)
        kl = self.divergence(log_probabilities)
        agreement = (log_probabilities.argmax(-1) == self._expected.argmax(-1)).double().mean()
        return Verdict(
            weight_error=lost / total,
            mean_kl=float(kl.mean()),
            kl_error=float(kl.std() / len(kl) ** 0.5),
            median_kl=float(kl.median()),
            perplexity=self._perplexity(log_probabilities),
            top1_agreement=float(agreement),
            num_weights=num_weights,
            seconds=seconds,
        )

    def divergence(self, log_probabilities: torch.Tensor) -> torch.Tensor:
        """KL(float || other) at every position, in nats."""
        return (self._expected.exp() * (self._expected - log_probabilities)).sum(-1).double().flatten()

    @torch.no_grad()
    def _log_probabilities(self) -> torch.Tensor:
        batches = torch.split(self.sequences, _SEQUENCES_AT_ONCE)
        logits = (self._model(input_ids=batch, use_cache=False).logits for batch in batches)
        return torch.cat([values.double().log_softmax(-1).float() for values in logits])

    def _perplexity(self, log_probabilities: torch.Tensor) -> float:
        taken = log_probabilities[:, :-1].gather(-1, self.sequences[:, 1:, None])
        return float((-taken.double().mean()).exp())
