"""The tiny checkpoint: about two million random parameters in the layout of the published Qwen 3.5 checkpoints.

Values depend on the seed and on the tensor's name alone, so two variants of one seed (fused or one tensor an expert,
one file or several, nested or flat names) hold the same model.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints.config_json import (
    ARCHITECTURES,
    MOE_ARCHITECTURES,
    TINY_DENSE,
    TINY_MOE,
    TINY_TEXT,
    Json,
    config_json,
    generation_config,
    is_nested,
    text_config,
)
from tests.checkpoints.safetensors_files import StoredTensor, encode, write_file, write_sharded
from tests.checkpoints.tensors import (
    TensorPlan,
    expert_tensors,
    lm_head,
    mtp_tensors,
    text_tensors,
    vision_tensors,
)
from tests.checkpoints.tokenizer import NUM_TOKENS, build_tokenizer, token_ids, tokenizer_config

_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
_THINKS_BY_DEFAULT = "enable_thinking is defined and enable_thinking is false"
_DOES_NOT_THINK_BY_DEFAULT = "enable_thinking is not defined or enable_thinking is not true"


def chat_template(*, thinks_by_default: bool = True) -> str:
    """The chat template; the 0.8B and 2B models have the one that thinks only when asked to."""
    source = _TEMPLATE.read_text(encoding="utf-8")
    assert source.count(_THINKS_BY_DEFAULT) == 1
    return source if thinks_by_default else source.replace(_THINKS_BY_DEFAULT, _DOES_NOT_THINK_BY_DEFAULT)


def write_tiny(
    folder: Path,
    *,
    seed: int = 0,
    architecture: str = "Qwen3_5MoeForConditionalGeneration",
    dtype: str = "BF16",
    fused_experts: bool = True,
    num_shards: int = 1,
    tie_word_embeddings: bool = False,
    vision: bool = True,
    mtp: bool = False,
    thinks_by_default: bool = True,
    text_overrides: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """Write a checkpoint into `folder`, which is made if it is missing, and return it.

    Args:
        architecture: one of config_json.ARCHITECTURES. ...ForConditionalGeneration is nested as on the hub,
            ...ForCausalLM is flat with names `model.layers...`; Moe has experts, the others a plain MLP.
        dtype: "BF16", "F16" or "F32"; A_log and linear_attn.norm are F32 in any case.
        fused_experts: `experts.gate_up_proj` [E, 2I, H], or one tensor an expert and projection.
        num_shards: 1 writes model.safetensors; more write about as many shards, and an index.
        vision: include the (one-block) vision tower, without which transformers reports missing weights. Nested only.
        mtp: include the multi-token-prediction head, its experts one tensor each, as Qwen 3.5 has them.
        text_overrides: fields of the text model to set; None removes one. Shapes follow.
        extra_tensors: full names and shapes of tensors to add, which nothing uses.
    """
    assert architecture in ARCHITECTURES, architecture
    ids = token_ids()
    base = {**TINY_TEXT, **(TINY_MOE if architecture in MOE_ARCHITECTURES else TINY_DENSE)}
    switches = {"tie_word_embeddings": tie_word_embeddings, "mtp_num_hidden_layers": int(mtp)}
    text = text_config(architecture, base, ids, {**switches, **(text_overrides or {})})
    config = config_json(architecture, text, ids)

    plans = list(_plans(architecture, text, config.get("vision_config") if vision else None, mtp))
    plans += [TensorPlan(name, shape) for name, shape in (extra_tensors or {}).items()]
    stored = [tensor for plan in plans for tensor in _stored(plan, seed, dtype, fused_experts, is_nested(architecture))]

    folder.mkdir(parents=True, exist_ok=True)
    if num_shards == 1:
        write_file(folder / "model.safetensors", stored)
    else:
        write_sharded(folder, stored, -(-sum(tensor.num_bytes for tensor in stored) // num_shards))
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation_config(ids))
    write_json(folder / "tokenizer_config.json", tokenizer_config())
    (folder / "tokenizer.json").write_text(build_tokenizer(), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(chat_template(thinks_by_default=thinks_by_default), encoding="utf-8")
    return folder


def write_json(path: Path, content: Json) -> None:
    """Write one of a checkpoint's JSON files, indented as on the hub."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def values(plan: TensorPlan, seed: int) -> np.ndarray:
    """float32 values of a tensor, drawn by the seed and the name; embedding rows without a token are almost zero."""
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(plan.name.encode())]))
    if plan.kind == "normal":
        drawn = plan.low + plan.high * generator.standard_normal(plan.shape, np.float32)
    elif plan.kind == "uniform":
        drawn = generator.uniform(plan.low, plan.high, plan.shape).astype(np.float32)
    else:
        drawn = generator.uniform(np.log(plan.low), np.log(plan.high), plan.shape).astype(np.float32)
    if plan.name in {"embed_tokens.weight", "lm_head.weight"}:
        drawn[NUM_TOKENS:] *= np.float32(0.01)
    return drawn


def _plans(architecture: str, text: Json, vision: Json | None, mtp: bool) -> Iterator[TensorPlan]:
    yield from text_tensors(text)
    if not text["tie_word_embeddings"]:
        yield lm_head(text)
    if is_nested(architecture) and vision is not None:
        yield from vision_tensors(vision)
    if mtp:
        yield from mtp_tensors(text)


def _stored(plan: TensorPlan, seed: int, dtype: str, fused_experts: bool, nested: bool) -> Iterator[StoredTensor]:
    array = values(plan, seed)
    name = plan.name
    if name.startswith(("embed_tokens.", "layers.", "norm.")):
        name = ("model.language_model." if nested else "model.") + name
    stored_dtype = "F32" if plan.keep_float32 else dtype
    if ".experts." in name and (name.startswith("mtp.") or not fused_experts):
        parts = list(expert_tensors(replace(plan, name=name)))
        for part, matrix in zip(parts, np.split(array.reshape(-1, array.shape[-1]), len(parts)), strict=True):
            yield StoredTensor(part.name, stored_dtype, part.shape, _once(encode(matrix, stored_dtype)))
    else:
        yield StoredTensor(name, stored_dtype, plan.shape, _once(encode(array, stored_dtype)))


def _once(content: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: iter((content,))
