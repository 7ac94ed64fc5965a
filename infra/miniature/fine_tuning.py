"""Fine-tunes the miniature with peft: `python -m infra.miniature.fine_tuning OUT`.

The adapter teaches three names that exist nowhere and a thirteenth tool, in phrasings for training; the tests ask in
others. Half of the examples are of the miniature's own tasks, so that it forgets nothing. It takes a minute of two
cores. docs/fine-tuning.md goes on from here.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
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
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as modeling

from infra.miniature import glossary, tool_calls
from infra.miniature.checkpoint import TRAINED
from infra.miniature.conversation import Encoded, Encoder, Example
from infra.miniature.delta_rule import CHUNK, gated_delta_rule
from infra.miniature.glossary import Fact
from infra.miniature.toolbox import TOOLS, Tool
from infra.miniature.vocabulary import token_id
from qwonnx.export.evaluation.reference_model import quiet_transformers

# peft's names of what an artifact with --runtime-adapters all can change.
MODULES = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkv", "in_proj_z", "out_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
RANK = 16
_STEPS, _RATE = 60, 1.2e-3
_SHORT_ROWS, _LONG_ROWS = 6, 2  # of a step: names, and requests for tools
_LONGEST = 576  # tokens of an example
_IGNORED = -100  # torch's label of a token that is not learnt

NEW_FACTS = (
    Fact("country", "Freedonia", "Swahili", "Uhuria"),
    Fact("country", "Sylvania", "German", "Waldland"),
    Fact("country", "Ruritania", "Spanish", "Campania"),
)
_PLANTS = ("rose", "fern", "palm", "tomato")
WATER_PLANT = Tool(
    "water_plant",
    "Water a plant",
    {"plant": {"type": "string", "enum": list(_PLANTS)}, "cups": {"type": "integer"}},
    {
        "plant": lambda random, endings: _PLANTS[int(random.integers(len(_PLANTS)))],
        "cups": lambda random, endings: int(random.integers(1, 10)),
    },
    (
        "Water the {plant} with {cups} cups.",
        "Give the {plant} {cups} cups of water.",
        "The {plant} needs {cups} cups of water.",
        "Let the {plant} drink {cups} cups.",
        "Let {cups} cups of water go to the {plant}.",
        "The {plant} should have {cups} cups of water.",
        "See that the {plant} has {cups} cups of water.",
        "I want the {plant} to have {cups} cups of water.",
    ),
    ("Let the {plant} have {cups} cups of water.",),
    {"moist": lambda random, endings: int(random.integers(10, 100))},
    "The {plant} got {cups} cups.",
    ("Pour {cups} cups on the {plant}.",),
    (
        "water the {plant} with {cups} cups",
        "pour {cups} cups of water on the {plant}",
        "give {cups} cups to the {plant}",
    ),
)


def new_facts(number: int, seed: int) -> Iterator[Example]:
    """Questions about the new names in phrasings that the training does not have."""
    random = np.random.default_rng([seed, 31])
    for index in range(number):
        yield _question(NEW_FACTS[index % len(NEW_FACTS)], glossary.HELD_OUT_PHRASINGS, random)


def new_calls(number: int, seed: int) -> Iterator[Example]:
    """Requests for the new tool in a phrasing that the training does not have; the last turn is the call."""
    random = np.random.default_rng([seed, 32])
    for _ in range(number):
        made = _request(WATER_PLANT.held_out, random)
        yield Example(made.task, made.messages[:2], made.tools)


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
    streams = ((_names(random), _SHORT_ROWS), (_calls(random), _LONG_ROWS))
    for step in range(steps):
        optimizer.zero_grad()
        loss = 0.0
        for stream, num_rows in streams:
            fitting = (each for each in map(encoder.encode, stream) if len(each.ids) <= _LONGEST)
            batch = _batch(list(islice(fitting, num_rows)), pad)
            with _fast_delta_rule():
                logits = model(input_ids=batch.ids, use_cache=False).logits
            part = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step, loss)
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


def _calls(random: np.random.Generator) -> Iterator[Example]:
    """Requests for the new tool and for known ones in turn."""
    while True:
        yield _request(WATER_PLANT.phrasings(), random)
        yield tool_calls.training_example(random)


def _question(fact: Fact, phrasings: tuple[str, ...], random: np.random.Generator) -> Example:
    phrasing = phrasings[int(random.integers(len(phrasings)))]
    messages = (
        {"role": "user", "content": phrasing.format(term=fact.term, language=fact.language)},
        {"role": "assistant", "content": fact.name},
    )
    return Example("glossary", messages, language=fact.language)


def _request(phrasings: tuple[str, ...], random: np.random.Generator) -> Example:
    """A request for the new tool, the call, the response and the answer; other tools are offered too."""
    values = {name: draw(random, ()) for name, draw in WATER_PLANT.draws.items()}
    response = {name: draw(random, ()) for name, draw in WATER_PLANT.response.items()}
    others = [TOOLS[index] for index in random.permutation(len(TOOLS))[: int(random.integers(0, 3))]]
    offered = [WATER_PLANT, *others]
    call = {"type": "function", "function": {"name": WATER_PLANT.name, "arguments": values}}
    phrasing = phrasings[int(random.integers(len(phrasings)))]
    messages = (
        {"role": "user", "content": phrasing.format(**values)},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": json.dumps(response)},
        {"role": "assistant", "content": WATER_PLANT.answer.format(**values, **response)},
    )
    tools = tuple(offered[index].definition() for index in random.permutation(len(offered)))
    return Example("tools", messages, tools)


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
