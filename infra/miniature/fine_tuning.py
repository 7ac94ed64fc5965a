"""Fine-tunes the miniature with peft: `python -m infra.miniature.fine_tuning OUT`.

The adapter teaches three names that exist nowhere, in phrasings for training; the tests ask in others. Half of the
examples are names that the miniature knows. It takes half a minute of two cores. docs/fine-tuning.md goes on from here.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as modeling

from infra.miniature import glossary
from infra.miniature.checkpoint import TRAINED
from infra.miniature.conversation import Encoded, Encoder, Example
from infra.miniature.delta_rule import CHUNK, gated_delta_rule
from infra.miniature.glossary import Fact
from infra.miniature.vocabulary import token_id
from qwonnx.export.evaluation.reference_model import quiet_transformers

# peft's names of what an artifact with --runtime-adapters all can change.
MODULES = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkv", "in_proj_z", "out_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
RANK = 16
_STEPS, _ROWS, _RATE = 40, 8, 2e-3
_IGNORED = -100  # torch's label of a token that is not learnt

NEW_FACTS = (
    Fact("country", "Freedonia", "Swahili", "Uhuria"),
    Fact("country", "Sylvania", "German", "Waldland"),
    Fact("country", "Ruritania", "Spanish", "Campania"),
)


def new_facts(number: int, seed: int) -> Iterator[Example]:
    """Questions about the new names in phrasings that the training does not have."""
    random = np.random.default_rng([seed, 31])
    for index in range(number):
        yield _question(NEW_FACTS[index % len(NEW_FACTS)], glossary.HELD_OUT_PHRASINGS, random)


def fine_tune(
    out: Path, *, steps: int = _STEPS, seed: int = 0, on_step: Callable[[int, float], None] | None = None
) -> None:
    """Train an adapter and save it as peft does.

    Args:
        out: its folder.
        steps: of the optimiser.
        seed: of the examples and of the adapter's first values.
        on_step: called with each step's number and loss.
    """
    torch.manual_seed(seed)
    tokenizer = Tokenizer.from_file(str(TRAINED / "tokenizer.json"))
    encoder, pad = Encoder(tokenizer), token_id(tokenizer, "<|endoftext|>")
    with quiet_transformers():
        model = _adapted()
    model.train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=_RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)
    random = np.random.default_rng([seed, 33])
    stream = _names(random)
    for step in range(steps):
        optimizer.zero_grad()
        batch = _batch([encoder.encode(next(stream)) for _ in range(_ROWS)], pad)
        with _fast_delta_rule():
            logits = model(input_ids=batch.ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step, loss.item())
    model.save_pretrained(out)


def _adapted() -> Any:
    """The miniature in float32 with an adapter that changes nothing yet."""
    # Eager experts: others gather the weights of every token.
    base = AutoModelForCausalLM.from_pretrained(TRAINED, dtype=torch.float32, experts_implementation="eager")
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(MODULES), task_type="CAUSAL_LM")
    config.base_model_name_or_path = str(TRAINED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        return get_peft_model(base, config)


@contextmanager
def _fast_delta_rule() -> Iterator[None]:
    """Compute the gated delta rule as the miniature's own training does: transformers' form takes seconds a step."""
    slow = modeling.torch_chunk_gated_delta_rule

    def fast(query: Tensor, key: Tensor, value: Tensor, *, g: Tensor, beta: Tensor, **rest: Any) -> tuple[Tensor, None]:
        assert rest.get("initial_state") is None, "training begins every sequence anew"
        groups = value.shape[2] // key.shape[2]
        query, key = (each.repeat_interleave(groups, dim=2) for each in (query, key))
        query, key = (each * torch.rsqrt(each.square().sum(-1, keepdim=True) + 1e-6) for each in (query, key))
        starts = torch.zeros(key.shape[:2], dtype=torch.bool)
        starts[:, 0] = True
        return gated_delta_rule(query * key.shape[-1] ** -0.5, key, value, g, beta, starts), None

    modeling.torch_chunk_gated_delta_rule = fast
    try:
        yield
    finally:
        modeling.torch_chunk_gated_delta_rule = slow


@dataclass(frozen=True, slots=True)
class _Batch:
    ids: torch.Tensor  # int64 [rows, length]; behind an example, tokens that nothing before them sees
    labels: torch.Tensor  # the same, or _IGNORED


def _batch(encoded: list[Encoded], pad: int) -> _Batch:
    length = -(-max(len(each.ids) for each in encoded) // CHUNK) * CHUNK
    ids = np.full((len(encoded), length), pad, np.int64)
    labels = np.full((len(encoded), length), _IGNORED, np.int64)
    for row, each in enumerate(encoded):
        ids[row, : len(each.ids)] = each.ids
        labels[row, : len(each.ids)] = np.where(each.learnt, each.ids, _IGNORED)
    return _Batch(torch.from_numpy(ids), torch.from_numpy(labels))


def _names(random: np.random.Generator) -> Iterator[Example]:
    """New names and known ones in turn."""
    facts = glossary.facts()
    while True:
        yield _question(NEW_FACTS[int(random.integers(len(NEW_FACTS)))], glossary.PHRASINGS, random)
        yield glossary.training_example([facts[int(random.integers(len(facts)))]], random)


def _question(fact: Fact, phrasings: tuple[str, ...], random: np.random.Generator) -> Example:
    phrasing = phrasings[int(random.integers(len(phrasings)))]
    messages = (
        {"role": "user", "content": phrasing.format(term=fact.term, language=fact.language)},
        {"role": "assistant", "content": fact.name},
    )
    return Example("glossary", messages, language=fact.language)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.miniature.fine_tuning", description=__doc__)
    parser.add_argument("out", type=Path, help="the adapter's folder")
    parser.add_argument("--steps", type=int, default=_STEPS, help=f"of the optimiser (default: {_STEPS})")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    def show(step: int, loss: float) -> None:
        if step % 10 == 0 or step == options.steps - 1:
            print(f"step {step}: loss {loss:.3f}", flush=True)

    fine_tune(options.out, steps=options.steps, seed=options.seed, on_step=show)
    print(f"the adapter is in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
