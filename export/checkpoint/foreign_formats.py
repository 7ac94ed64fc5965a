"""Recognises files that are not a checkpoint in safetensors, and says by name what they are and what to do with them.

People point an export at what a trainer, a quantiser or another runtime wrote. Each of those has files, tensors or
metadata of its own. A message never tells a user to download again: the files may be the only copy of a fine-tune.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwonnx.export.errors import CheckpointError
from qwonnx.runtime.adapters.adapter_config import ADAPTER_CONFIG
from qwonnx.runtime.artifact.manifest import MANIFEST_NAME
from qwonnx.runtime.artifact.strict_json import StrictJsonError, quoted, read_object

_ADAPTER_WEIGHTS = re.compile(r"adapter_model.*\.(safetensors|bin)|adapters\.(safetensors|npz)", re.IGNORECASE)
_MAX_CONFIG_BYTES = 4 << 20

# The beginning of a file that Git LFS puts in the place of a large one.
_LFS_POINTER = b"version https://git-lfs"

_SAVE = "load it with transformers and write it with save_pretrained, then export that folder"
_ORIGINAL = "export the checkpoint that it was made from"


@dataclass(frozen=True, slots=True)
class _Sign:
    """A pattern of names, what a name that matches it is, and what to do."""

    pattern: re.Pattern[str]
    meaning: str
    remedy: str


def _sign(pattern: str, meaning: str, remedy: str) -> _Sign:
    return _Sign(re.compile(pattern, re.IGNORECASE), meaning, remedy)


# Names of files and folders, whole. The first sign that some name matches is reported.
_FILES = (
    _sign(r".*\.gguf", "is a GGUF file of llama.cpp", "export that file itself, by its path"),
    _sign(r"zero_to_fp32\.py|global_step\d+", "is part of a DeepSpeed checkpoint", f"run zero_to_fp32.py, {_SAVE}"),
    _sign(
        r".*\.distcp|pytorch_model_fsdp_\d+", "is part of an FSDP checkpoint", "merge it with accelerate merge-weights"
    ),
    _sign(
        r"(?!training_args|optimizer|scheduler|scaler|rng_state)(.*\.bin\.index\.json|.*\.(bin|pt|pth|ckpt))",
        "is a PyTorch file",
        f"choose it with --weights-file if it holds a model's tensors by name, or {_SAVE}",
    ),
    _sign(r".*\.(h5|msgpack)", "is a file of TensorFlow or Flax", _SAVE),
    _sign(r".*\.npz", "is a file of MLX or numpy", _ORIGINAL),
    _sign(r".*\.onnx", "is a model in ONNX already", _ORIGINAL),
    _sign(r"params\.json", "is Mistral's description of a model", "give a folder in Hugging Face layout"),
)

# Parts of names of tensors. Each says that the tensors need more than names and shapes to be understood.
_TENSORS = (
    _sign(
        r"\.lora_[AB]\b|\.lora_embedding_[AB]\b|\.lora_magnitude_vector\b",
        "is of a LoRA adapter that is not merged",
        "call merge_and_unload of peft, save the result and export it",
    ),
    _sign(
        r"\.base_layer\.",
        "is of a model in peft's wrapper",
        "call merge_and_unload of peft, save the result and export it",
    ),
    _sign(
        r"\.modules_to_save\.|\.original_module\.",
        "is of a model in peft's wrapper",
        "call merge_and_unload of peft, save the result and export it",
    ),
    _sign(
        r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB)$|\.quant_state\.bitsandbytes",
        "is of bitsandbytes",
        "load it with transformers, call dequantize(), save it and export that folder",
    ),
    _sign(r"\.weight_packed$|\.weight_global_scale$", "is of compressed-tensors", _ORIGINAL),
    _sign(r"\.weight_scale_2$|\.weight_quantizer\.", "is of ModelOpt", _ORIGINAL),
    _sign(r"\.(W_q|W_nbits)$", "is of HQQ", _ORIGINAL),
    _sign(
        r"\.(qweight|qzeros)$",
        "is of GPTQ or AWQ, and config.json does not say which",
        "copy config.json of the quantised checkpoint into the folder",
    ),
    _sign(
        r"\.weight_scale(_inv)?$|\.input_scale$",
        "is a scale of FP8 that config.json does not describe",
        "copy config.json of the quantised checkpoint into the folder",
    ),
    _sign(r"\.[kv]_scale$", "is a scale of a quantised cache", _ORIGINAL),
)

# Files beside config.json in which a quantiser describes weights that config.json then calls ordinary.
_SIDE_FILES = {
    "hf_quant_config.json": ("ModelOpt", "quantization"),
    "quantize_config.json": ("AutoGPTQ or GPTQModel", None),
    "quant_config.json": ("AutoAWQ", None),
    "quantization_config.json": ("AutoRound", None),
}


def refuse_adapter(folder: Path, *, has_weights: bool) -> None:
    """Refuse a folder with an adapter: transformers would load it, alone or on top of the weights beside it.

    Raises:
        CheckpointError: there is an adapter; the message names its kind and its base model.
    """
    files = sorted(name for name in _names(folder) if name == ADAPTER_CONFIG or _ADAPTER_WEIGHTS.fullmatch(name))
    if not files:
        return
    described = _object(folder / ADAPTER_CONFIG)
    base = described.get("base_model_name_or_path")
    of = f" of {quoted(base)}" if isinstance(base, str) and base else ""
    named = next((name for name in files if name != ADAPTER_CONFIG), ADAPTER_CONFIG)
    if has_weights:
        raise CheckpointError(
            f"{folder} has weights and {_kind(described)}{of} beside them ({named}), and an export would hold only one"
            f" of them: move the adapter into a folder of its own, and give that with --adapter to merge it"
        )
    raise CheckpointError(
        f"{folder} is {_kind(described)}{of} ({named}) and not a whole model: give its base, and the adapter with"
        " qwonnx export BASE OUT --adapter FOLDER"
    )


def refuse_side_file(folder: Path) -> None:
    """Refuse a folder whose weights a quantiser describes in a file that config.json does not know.

    Raises:
        CheckpointError: such a file is there.
    """
    for name, (tool, inner) in _SIDE_FILES.items():
        if not (folder / name).is_file():
            continue
        described = _object(folder / name)
        within = described.get(inner) if inner else None
        fields = within if isinstance(within, dict) else described
        method = next((fields[key] for key in ("quant_algo", "quant_method", "bits", "w_bit") if fields.get(key)), None)
        shown = "" if method is None else f" ({quoted(method, 40)})"
        raise CheckpointError(
            f"{folder / name} says that {tool} quantised the weights{shown}, and config.json has no"
            f" quantization_config: {_ORIGINAL}, or remove the file if it is a leftover"
        )


def recognised_files(folder: Path) -> str | None:
    """What a folder without usable safetensors holds, with a remedy: the end of a message. None: nothing known."""
    names = sorted(_names(folder))
    if MANIFEST_NAME in names:
        return f"{MANIFEST_NAME} says that it is an artifact of qwonnx: give the checkpoint that it was exported from"
    return recognised_names(names) or _nearby(folder)


def recognised_names(names: Iterable[str]) -> str | None:
    """What the first known file among these names is, with a remedy; None: nothing known."""
    listed = sorted(names)
    return next((found for sign in _FILES for name in listed if (found := _found(sign, name))), None)


def refuse_pointer(path: Path | str, content: bytes) -> None:
    """Refuse a file that Git LFS has not replaced by its content yet.

    Raises:
        CheckpointError: the content begins as a pointer does.
    """
    if content.startswith(_LFS_POINTER):
        raise CheckpointError(f"{path} is a pointer of Git LFS and not the file itself: run git lfs pull in its folder")


def recognised_tensors(names: Iterable[str]) -> str | None:
    """What a tensor among these is that no model of ours has, with a remedy; None: nothing known."""
    for name in names:
        for sign in _TENSORS:
            if sign.pattern.search(name):
                return f"{quoted(name)} {sign.meaning}: {sign.remedy}"
    return None


def _found(sign: _Sign, name: str) -> str | None:
    return f"{quoted(name)} {sign.meaning}: {sign.remedy}" if sign.pattern.fullmatch(name) else None


def _nearby(folder: Path) -> str | None:
    """Weights under a name or in a place where nothing looks for them."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".safetensors" and path.suffix != ".safetensors":
            return f"{quoted(path.name)} has its suffix in capital letters: rename it"
    inner = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and ((path / "config.json").is_file() or (path / ADAPTER_CONFIG).is_file())
    )
    if inner:
        shown = ", ".join(map(quoted, inner[:3])) + (", ..." if len(inner) > 3 else "")
        return f"checkpoints may be in its folders ({shown}): give one of them"
    return None


def _kind(described: dict[str, Any]) -> str:
    if described.get("use_dora") is True:
        return "a DoRA adapter"
    kind = described.get("peft_type")
    if not isinstance(kind, str) or not kind.isalnum() or kind == "LORA":
        return "a LoRA adapter"
    return f"{'an' if kind[0] in 'AEIO' else 'a'} {kind[:20]} adapter"


def _object(path: Path) -> dict[str, Any]:
    """A JSON file that only makes a message better; empty if it is absent or malformed."""
    try:
        return read_object(path, _MAX_CONFIG_BYTES) if path.is_file() else {}
    except StrictJsonError:
        return {}


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error.strerror}): check its permissions") from error
