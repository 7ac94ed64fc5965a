"""GGUF files as llama.cpp's converter makes them: `python -m tests.checkpoints.gguf_files SOURCE OUT.gguf`.

Tensors are renamed and changed as the converter does it, and it keeps vectors, routers and convolutions in F32 too.
Without --type tensors have F32. Files of F32, F16 and BF16 are equal to the converter's to the bit in every tensor.
This was checked once, with the converter in llama_cpp_python 0.3.36. Quantised files have sound blocks of a simpler
quantiser than llama.cpp's own: the nearest codes for the largest value of a block.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tests.checkpoints.safetensors_files import encode

Array = np.ndarray[Any, np.dtype[Any]]

ALIGNMENT = 32
# Numbers of the format, and values and bytes of a block.
TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "BF16": (30, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q8_0": (8, 32, 34),
    "Q4_K": (12, 256, 144),
    "Q6_K": (14, 256, 210),
}
_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    **{f"mlp.{part}_proj.weight": f"ffn_{part}.weight" for part in ("gate", "up", "down")},
    **{f"mlp.shared_expert.{part}_proj.weight": f"ffn_{part}_shexp.weight" for part in ("gate", "up", "down")},
}
_KEPT_FLOAT = ("ffn_gate_inp", "ssm_conv1d")
_WIDTH = {bool: 7, int: 4, float: 6, str: 8}  # the format's types of values: uint32, float32


def write_gguf(source: Path, out: Path, type_name: str = "F32", num_parts: int = 1, **metadata: Any) -> Path:
    """Write a checkpoint's folder as GGUF; returns the first file.

    Args:
        source: a folder with safetensors, config.json and tokenizer.json.
        out: the file; of several, NAME-00001-of-0000N.gguf takes its place.
        type_name: of TYPES. Tensors whose rows its blocks do not divide become Q8_0, or else F16.
        num_parts: files of a series.
        metadata: entries to set; None removes one. __ stands for a dot.
    """
    found = converted(source)
    entries = described(source, found) | {key.replace("__", "."): value for key, value in metadata.items()}
    kept = {key: value for key, value in entries.items() if value is not None}
    tensors = {name: stored(name, values, type_name) for name, values in found.items()}
    if num_parts == 1:
        out.write_bytes(gguf_bytes(kept, tensors))
        return out
    names = sorted(tensors)
    parts = [names[number::num_parts] for number in range(num_parts)]
    paths = [out.with_name(f"{out.stem}-{number:05}-of-{num_parts:05}.gguf") for number in range(1, num_parts + 1)]
    for number, (path, chosen) in enumerate(zip(paths, parts, strict=True)):
        split = {"split.no": number, "split.count": num_parts, "split.tensors.count": len(names)}
        content = gguf_bytes((kept if number == 0 else {}) | split, {name: tensors[name] for name in chosen})
        path.write_bytes(content)
    return paths[0]


def converted(source: Path) -> dict[str, Array]:
    """Tensors by llama.cpp's names, float32, in the converter's form."""
    text = _text_config(source)
    made: dict[str, Array] = {}
    for path in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            name = name.replace("model.language_model.", "model.")
            if name.startswith(("model.visual.", "mtp.")):
                continue
            values = tensor.float().numpy()
            if not name.startswith("model.layers."):
                top = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight"}
                is_norm = name == "model.norm.weight"
                made["output_norm.weight" if is_norm else top[name]] = values + np.float32(is_norm)
                continue
            _, _, number, inner = name.split(".", 3)
            values = _changed(inner, values, text)
            if inner == "mlp.experts.gate_up_proj":
                gate, up = np.split(values, 2, axis=1)
                made |= {f"blk.{number}.ffn_gate_exps.weight": gate, f"blk.{number}.ffn_up_exps.weight": up}
            else:
                made[f"blk.{number}.{_NAMES[inner]}"] = values
    return made


def _changed(inner: str, values: Array, text: Mapping[str, Any]) -> Array:
    """One tensor of a layer as the converter changes it."""
    keys, heads = text["linear_num_key_heads"], text["linear_num_value_heads"]
    before, size = 2 * keys * text["linear_key_head_dim"], text["linear_value_head_dim"]
    if inner.endswith("norm.weight") and inner != "linear_attn.norm.weight":
        return values + np.float32(1)
    part = inner.removeprefix("linear_attn.")
    if part == "conv1d.weight":
        values = values[:, 0]
    if part in ("in_proj_qkv.weight", "conv1d.weight"):
        return np.concatenate([values[:before], _tiled(values[before:], keys, heads, size)])
    if part == "in_proj_z.weight":
        return _tiled(values, keys, heads, size)
    if part in ("in_proj_a.weight", "in_proj_b.weight", "dt_bias"):
        return _tiled(values, keys, heads, 1)
    if part == "A_log":
        return -torch.exp(torch.from_numpy(_tiled(values, keys, heads, 1))).numpy()
    if part == "out_proj.weight":
        return np.ascontiguousarray(_tiled(values.T, keys, heads, size).T)
    return values


def _tiled(values: Array, keys: int, heads: int, size: int) -> Array:
    """Value heads of all key heads in turn, where they were grouped by key head."""
    grouped = values.reshape(keys, heads // keys, size, *values.shape[1:])
    return np.ascontiguousarray(grouped.swapaxes(0, 1)).reshape(values.shape)


def described(source: Path, tensors: Mapping[str, Array]) -> dict[str, Any]:
    """The metadata."""
    text = _text_config(source)
    name = "qwen35moe" if "num_experts" in text else "qwen35"
    rope = text["rope_parameters"]
    fields = {
        "block_count": text["num_hidden_layers"],
        "context_length": text["max_position_embeddings"],
        "embedding_length": text["hidden_size"],
        "attention.head_count": text["num_attention_heads"],
        "attention.head_count_kv": text["num_key_value_heads"],
        "attention.key_length": text["head_dim"],
        "attention.value_length": text["head_dim"],
        "attention.layer_norm_rms_epsilon": float(text["rms_norm_eps"]),
        "attention.recurrent_layers": [kind == "linear_attention" for kind in text["layer_types"]],
        "full_attention_interval": text.get("full_attention_interval", 4),
        "rope.dimension_count": int(text["head_dim"] * rope["partial_rotary_factor"]),
        "rope.dimension_sections": [*rope["mrope_section"], 0],
        "rope.freq_base": float(rope["rope_theta"]),
        "ssm.conv_kernel": text["linear_conv_kernel_dim"],
        "ssm.state_size": text["linear_key_head_dim"],
        "ssm.group_count": text["linear_num_key_heads"],
        "ssm.time_step_rank": text["linear_num_value_heads"],
        "ssm.inner_size": text["linear_value_head_dim"] * text["linear_num_value_heads"],
    }
    if "num_experts" in text:
        fields |= {
            "expert_count": text["num_experts"],
            "expert_used_count": text["num_experts_per_tok"],
            "expert_feed_forward_length": text["moe_intermediate_size"],
            "expert_shared_feed_forward_length": text["shared_expert_intermediate_size"],
        }
    else:
        fields["feed_forward_length"] = text["intermediate_size"]
    general = {"general.architecture": name, "general.type": "model", "general.quantization_version": 2}
    return general | {f"{name}.{key}": value for key, value in fields.items()} | _texts(source, text["vocab_size"])


def _texts(source: Path, vocab_size: int) -> dict[str, Any]:
    """Tokenizer, template and sampling."""
    read = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    kinds = [5] * vocab_size
    for token, number in read["model"]["vocab"].items():
        tokens[number], kinds[number] = token, 1
    for one in read["added_tokens"]:
        looks_special = one["content"].startswith("<|") and one["content"].endswith("|>")
        tokens[one["id"]], kinds[one["id"]] = one["content"], 3 if one["special"] or looks_special else 4
    ids = {token: number for number, token in enumerate(tokens)}
    found: dict[str, Any] = {
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen35",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in read["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": ids["<|im_end|>"],
        "tokenizer.ggml.padding_token_id": ids["<|endoftext|>"],
        "tokenizer.ggml.add_bos_token": False,
    }
    if (source / "chat_template.jinja").is_file():
        found["tokenizer.chat_template"] = (source / "chat_template.jinja").read_text(encoding="utf-8")
    return found


def stored(name: str, values: Array, type_name: str) -> tuple[str, tuple[int, ...], bytes]:
    """A tensor's type, shape and bytes; vectors, routers and convolutions stay F32."""
    if values.ndim == 1 or any(part in name for part in _KEPT_FLOAT):
        return "F32", values.shape, encode(values, "F32")
    candidates = (type_name, "Q8_0", "F16")
    chosen = next(one for one in candidates if values.shape[-1] % TYPES[one][1] == 0)
    content = _ENCODERS[chosen](values.reshape(-1, TYPES[chosen][1])) if chosen in _ENCODERS else encode(values, chosen)
    return chosen, values.shape, content


def gguf_bytes(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A whole file, version 3."""
    header = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    header += [_string(key) + _value(value) for key, value in metadata.items()]
    offset = 0
    for name, (type_name, shape, content) in tensors.items():
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        header += [_string(name), sizes, struct.pack("<IQ", TYPES[type_name][0], offset)]
        offset += len(_padded(content))
    return _padded(b"".join(header)) + b"".join(_padded(content) for _, _, content in tensors.values())


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        kind = _WIDTH[type(value[0])]
        return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(_value(item)[4:] for item in value)
    kind = _WIDTH[type(value)]
    content = _string(value) if kind == 8 else struct.pack({7: "<B", 4: "<I", 6: "<f"}[kind], value)
    return struct.pack("<I", kind) + content


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % ALIGNMENT)


def _text_config(source: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text: dict[str, Any] = document.get("text_config", document)
    return text


def _joined(parts: Iterable[Array]) -> bytes:
    """Parts of blocks, [n, any] each, as the blocks' bytes."""
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=1).tobytes()


def _rounded(values: Array, steps: Array, low: int, high: int) -> Array:
    divided = np.divide(values, steps, out=np.zeros(np.broadcast_shapes(values.shape, steps.shape)), where=steps != 0)
    return np.clip(np.rint(divided), low, high)


def _q8_0(blocks: Array) -> bytes:
    steps = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
    return _joined([steps, _rounded(blocks, steps.astype(np.float32), -127, 127).astype(np.int8)])


def _q4_0(blocks: Array) -> bytes:
    steps = (np.abs(blocks).max(1, keepdims=True) / 7).astype(np.float16)
    codes = (_rounded(blocks, steps.astype(np.float32), -8, 7) + 8).astype(np.uint8)
    return _joined([steps, codes[:, :16] | codes[:, 16:] << 4])


def _q4_k(blocks: Array) -> bytes:
    parts = blocks.reshape(-1, 8, 32)
    lowest = np.minimum(parts.min(2), 0)
    spread = (parts.max(2) - lowest) / 15
    scale, offset = ((x.max(1, keepdims=True) / 63).astype(np.float16) for x in (spread, -lowest))
    scales, offsets = (
        _rounded(x, y.astype(np.float32), 0, 63).astype(np.uint8) for x, y in ((spread, scale), (-lowest, offset))
    )
    step, minimum = scales * scale.astype(np.float32), offsets * offset.astype(np.float32)
    codes = _rounded(parts + minimum[..., None], step[..., None], 0, 15).astype(np.uint8).reshape(-1, 4, 2, 32)
    packed = [
        scales[:, :4] | scales[:, 4:] >> 4 << 6,
        offsets[:, :4] | offsets[:, 4:] >> 4 << 6,
        (scales[:, 4:] & 15) | offsets[:, 4:] << 4,
    ]
    return _joined([scale, offset, *packed, (codes[:, :, 0] | codes[:, :, 1] << 4).reshape(-1, 128)])


def _q6_k(blocks: Array) -> bytes:
    parts = blocks.reshape(-1, 16, 16)
    spread = np.abs(parts).max(2) / 31
    scale = (spread.max(1, keepdims=True) / 127).astype(np.float16)
    scales = _rounded(spread, scale.astype(np.float32), 0, 127).astype(np.int8)
    step = scales * scale.astype(np.float32)
    codes = (_rounded(parts, step[..., None], -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = codes & 15, codes >> 4
    halves = np.concatenate([low[:, :, :2] | low[:, :, 2:] << 4], axis=2).reshape(-1, 128)
    pairs = (high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6).reshape(-1, 64)
    return _joined([halves, pairs, scales, scale])


_ENCODERS: Mapping[str, Callable[[Array], bytes]] = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_K": _q4_k, "Q6_K": _q6_k}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.checkpoints.gguf_files", description=write_gguf.__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=TYPES, default="F32")
    parser.add_argument("--parts", type=int, default=1)
    options = parser.parse_args(arguments)
    print(write_gguf(options.source, options.out, options.type, options.parts))


if __name__ == "__main__":
    main()
