"""Trains a small Qwen 3.5 mixture of experts, for measurements of quantisation.

    python -m infra.bench.trained_checkpoint FOLDER [--steps 400]

Random weights give flat logits, on which a KL divergence says little. This trains 8 million parameters (8 layers, 16
experts, hidden size 128) from a seed on the sources of Python's standard library, with transformers, for about twelve
minutes on one core, and writes a checkpoint in the layout of the hub: BF16, one tensor for all experts. One file in ten
is not used in training: `held_out_text` gives those, `training_text` the others.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import time
import zlib
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.checkpoints.config_json import (
    TINY_MOE,
    TINY_TEXT,
    Json,
    config_json,
    generation_config,
    text_config,
)
from tests.checkpoints.safetensors_files import StoredTensor, encode, write_file
from tests.checkpoints.tiny import chat_template, write_json
from tests.checkpoints.tokenizer import (
    NUM_BASE_TOKENS,
    add_special_tokens,
    qwen_tokenizer,
    token_ids,
    tokenizer_config,
)

_ARCHITECTURE = "Qwen3_5MoeForCausalLM"
# Every input of a matrix has 128 features or a multiple: blocks of 128 fit everywhere.
TRAINED_TEXT: Json = {
    **TINY_TEXT,
    **TINY_MOE,
    "hidden_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "head_dim": 64,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 4,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "rope_parameters": {**TINY_TEXT["rope_parameters"], "mrope_section": [3, 3, 2]},
}
_SEQUENCE_TOKENS = 192
_BATCH = 8
_PEAK_RATE = 3e-3
_KEPT_IN_FLOAT32 = (".A_log", ".linear_attn.norm.weight")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write it; must not exist")
    parser.add_argument("--steps", type=int, default=400, help=f"of {_BATCH} x {_SEQUENCE_TOKENS} tokens")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.folder.exists():
        parser.error(f"{options.folder} exists: name another, or remove it")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tokenizer = _train_tokenizer()
    text = text_config(_ARCHITECTURE, TRAINED_TEXT, token_ids(), {})
    model = _model(text)
    print(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M parameters", flush=True)
    tokens = torch.tensor(tokenizer.encode(training_text(), add_special_tokens=False).ids)
    _train(model, tokens, options.steps)
    _write(options.folder, model, text, tokenizer)


def training_text() -> str:
    """Sources of the standard library, nine files in ten."""
    return "".join(text for name, text in _sources() if not _is_held_out(name))


def held_out_text() -> str:
    """The sources that are not used in training."""
    return "".join(text for name, text in _sources() if _is_held_out(name))


@cache
def _sources() -> tuple[tuple[str, str], ...]:
    """(name, content) of the standard library's modules, without its tests."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.py"))
    odd = {"site-packages", "test", "tests", "idle_test", "__pycache__"}
    return tuple(
        (path.as_posix(), (folder / path).read_text(encoding="utf-8", errors="ignore"))
        for path in paths
        if not odd & set(path.parts)
    )


def _is_held_out(name: str) -> bool:
    return zlib.crc32(name.encode()) % 10 == 0


def _train_tokenizer() -> Tokenizer:
    """The tiny checkpoint's tokenizer, with merges learnt from the sources: as many tokens, the same special ids."""
    tokenizer = qwen_tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_BASE_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([training_text()[: 4 << 20]], trainer)
    assert tokenizer.get_vocab_size() == NUM_BASE_TOKENS
    add_special_tokens(tokenizer)
    return tokenizer


def _model(text: Json) -> torch.nn.Module:
    from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

    fields = {name: value for name, value in text.items() if name not in ("dtype", "model_type")}
    model: torch.nn.Module = Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig(**fields, dtype="float32"))
    return model


def _train(model: torch.nn.Module, tokens: torch.Tensor, num_steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    # A short warm-up, then a linear decay to zero.
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 1.0) * (1 - step / num_steps) + 1e-3
    )
    starts = torch.Generator().manual_seed(0)
    began = time.monotonic()
    model.train()
    for step in range(num_steps):
        first = torch.randint(0, len(tokens) - _SEQUENCE_TOKENS, (_BATCH, 1), generator=starts)
        batch = tokens[first + torch.arange(_SEQUENCE_TOKENS)]
        loss = model(input_ids=batch, labels=batch, use_cache=False, output_router_logits=True).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if step % 20 == 0 or step == num_steps - 1:
            print(f"step {step:4}: loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True)


def _chunks(value: torch.Tensor, dtype: str) -> tuple[bytes]:
    return (encode(value.float().numpy(), dtype),)


def _write(folder: Path, model: torch.nn.Module, text: Json, tokenizer: Tokenizer) -> None:
    ids = token_ids()
    folder.mkdir(parents=True)
    stored = []
    for name, value in model.state_dict().items():
        dtype = "F32" if name.endswith(_KEPT_IN_FLOAT32) else "BF16"
        stored.append(StoredTensor(name, dtype, tuple(value.shape), partial(_chunks, value, dtype)))
    write_file(folder / "model.safetensors", stored)
    write_json(folder / "config.json", config_json(_ARCHITECTURE, text, ids))
    write_json(folder / "generation_config.json", generation_config(ids))
    write_json(folder / "tokenizer_config.json", tokenizer_config())
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(chat_template(), encoding="utf-8")
    print(json.dumps({"checkpoint": str(folder), "parameters": sum(v.numel() for v in model.state_dict().values())}))


if __name__ == "__main__":
    main()
