"""Fine-tunes the miniature with peft: `python -m infra.miniature.fine_tuning OUT`.

The adapter teaches what lessons.py has: three names and a tool. It forgets nothing, for two reasons. Most rows of a
step ask what the model knows, and there the loss is the divergence from what the model said before. And weights decay,
so that nothing stays changed that the new answers do not need. docs/fine-tuning.md goes on from here.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as modeling

from infra.miniature import lessons
from infra.miniature.checkpoint import TRAINED
from infra.miniature.conversation import Encoded, Encoder, Example
from infra.miniature.delta_rule import CHUNK, gated_delta_rule
from infra.miniature.experts import routed_experts
from infra.miniature.vocabulary import token_id
from qwonnx.export.evaluation.reference_model import quiet_transformers

# peft's names of each block's last projection and of the feed-forward block. With the projections before the mixers
# too, the model learns in fewer steps, and forgets one known name in thirty.
MODULES = ("o_proj", "out_proj", "gate_proj", "up_proj", "down_proj")
RANK = 16
_STEPS, _RATE, _DECAY = 130, 3e-3, 5.0
_OF_KNOWN = 8.0  # what the divergence of what is known counts, beside the cross entropy of what is new
_IGNORED = -100  # torch's label of a token that is not learnt


@dataclass(frozen=True, slots=True)
class _Part:
    """One batch of every step.

    Attributes:
        learn, keep: streams of examples, and how many of each are in the batch.
        longest: tokens; longer examples are left out.
    """

    learn: Iterator[Example]
    num_learn: int
    keep: Iterator[Example]
    num_keep: int
    longest: int


def fine_tune(
    out: Path, *, steps: int = _STEPS, seed: int = 0, on_step: Callable[[int, float, float], None] | None = None
) -> None:
    """Train an adapter and save it as peft does.

    Args:
        out: its folder.
        steps: of the optimiser.
        seed: of the examples and of the adapter's first values.
        on_step: called with each step's number, the loss of what is new, and the divergence of what is known, both
            means of a token in nats.
    """
    torch.manual_seed(seed)
    tokenizer = Tokenizer.from_file(str(TRAINED / "tokenizer.json"))
    encoder, pad = Encoder(tokenizer), token_id(tokenizer, "<|endoftext|>")
    with quiet_transformers():
        model = _adapted()
    model.train()
    optimizer = torch.optim.AdamW(
        [each for each in model.parameters() if each.requires_grad], lr=_RATE, weight_decay=_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)
    random = np.random.default_rng([seed, 33])
    parts = (
        _Part(lessons.facts_to_learn(random), 1, lessons.facts_to_keep(random), 24, 96),
        _Part(lessons.calls_to_learn(random), 1, lessons.calls_to_keep(random), 3, 704),
    )
    for step in range(steps):
        optimizer.zero_grad()
        new, changed = 0.0, 0.0
        for part in parts:
            learn = _encoded(part.learn, part.num_learn, encoder, part.longest)
            keep = _encoded(part.keep, part.num_keep, encoder, part.longest)
            of_new, of_known = _losses(model, _batch([*learn, *keep], pad), len(learn))
            (of_new + _OF_KNOWN * of_known).backward()  # type: ignore[no-untyped-call]
            new, changed = new + of_new.item() / len(parts), changed + of_known.item() / len(parts)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step, new, changed)
    model.save_pretrained(out)


def _adapted() -> Any:
    """The miniature in float32 with an adapter that changes nothing yet."""
    base = AutoModelForCausalLM.from_pretrained(TRAINED, dtype=torch.float32, experts_implementation="eager")
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(MODULES), task_type="CAUSAL_LM")
    config.base_model_name_or_path = str(TRAINED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        return get_peft_model(base, config)


@dataclass(frozen=True, slots=True)
class _Batch:
    ids: Tensor  # int64 [rows, length]; behind an example, tokens that nothing before them sees
    labels: Tensor  # the same, or _IGNORED


def _losses(model: Any, batch: _Batch, num_learn: int) -> tuple[Tensor, Tensor]:
    """Means of a token: the cross entropy of the first `num_learn` rows, and the others' divergence from the base."""
    with _fast_blocks():
        logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
        with torch.no_grad(), model.disable_adapter():
            before = model(input_ids=batch.ids[num_learn:], use_cache=False).logits[:, :-1]
    labels = batch.labels[:, 1:]
    new = cross_entropy(logits[:num_learn].flatten(0, 1), labels[:num_learn].flatten(), ignore_index=_IGNORED)
    known = labels[num_learn:] != _IGNORED
    says, said = logits[num_learn:][known].log_softmax(-1), before[known].log_softmax(-1)
    return new, kl_div(says, said, reduction="batchmean", log_target=True)


@contextmanager
def _fast_blocks() -> Iterator[None]:
    """Compute the gated delta rule and the experts as the miniature's own training does.

    transformers' delta rule takes seconds a step, and its experts keep what frozen weights do not need.
    """
    delta_rule, experts = modeling.torch_chunk_gated_delta_rule, modeling.Qwen3_5MoeExperts.forward
    modeling.torch_chunk_gated_delta_rule = _delta_rule
    modeling.Qwen3_5MoeExperts.forward = _experts
    try:
        yield
    finally:
        modeling.torch_chunk_gated_delta_rule = delta_rule
        modeling.Qwen3_5MoeExperts.forward = experts


def _delta_rule(
    query: Tensor, key: Tensor, value: Tensor, *, g: Tensor, beta: Tensor, **rest: Any
) -> tuple[Tensor, None]:
    assert rest.get("initial_state") is None, "training begins every sequence anew"
    groups = value.shape[2] // key.shape[2]
    query, key = (each.repeat_interleave(groups, dim=2) for each in (query, key))
    query, key = (each * torch.rsqrt(each.square().sum(-1, keepdim=True) + 1e-6) for each in (query, key))
    starts = torch.zeros(key.shape[:2], dtype=torch.bool)
    starts[:, 0] = True
    return gated_delta_rule(query * key.shape[-1] ** -0.5, key, value, g, beta, starts), None


def _experts(experts: Any, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    return routed_experts(x, experts.gate_up_proj, experts.down_proj, weights.to(x.dtype), index)


def _encoded(stream: Iterator[Example], number: int, encoder: Encoder, longest: int) -> list[Encoded]:
    """The next examples of a stream that are not too long."""
    return list(islice((each for each in map(encoder.encode, stream) if len(each.ids) <= longest), number))


def _batch(encoded: Sequence[Encoded], pad: int) -> _Batch:
    length = -(-max(len(each.ids) for each in encoded) // CHUNK) * CHUNK
    ids = np.full((len(encoded), length), pad, np.int64)
    labels = np.full((len(encoded), length), _IGNORED, np.int64)
    for row, each in enumerate(encoded):
        ids[row, : len(each.ids)] = each.ids
        labels[row, : len(each.ids)] = np.where(each.learnt, each.ids, _IGNORED)
    return _Batch(torch.from_numpy(ids), torch.from_numpy(labels))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.miniature.fine_tuning", description=__doc__)
    parser.add_argument("out", type=Path, help="the adapter's folder")
    parser.add_argument("--steps", type=int, default=_STEPS, help=f"of the optimiser (default: {_STEPS})")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    began = time.monotonic()

    def show(step: int, new: float, changed: float) -> None:
        if step % 10 == 0 or step == options.steps - 1:
            elapsed = time.monotonic() - began
            print(f"step {step}: loss {new:.4f}, change of what it knows {changed:.4f}, {elapsed:.0f} s", flush=True)

    fine_tune(options.out, steps=options.steps, seed=options.seed, on_step=show)
    print(f"the adapter is in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
