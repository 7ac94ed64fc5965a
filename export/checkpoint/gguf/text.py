"""tokenizer.json, the chat template and generation_config.json, from a GGUF file's metadata.

The file has the tokens with their kinds, the merges, and the name of a pre-tokenizer, which stands for Qwen 3.5's
frame. Added tokens have no flags there: they match literally, as Qwen 3.5's do. llama.cpp calls every added token of
the form <|...|> a control token; those of fill-in-the-middle are none, and are known by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwonnx.export.checkpoint.chat_templates import NO_TEMPLATE, TemplateSource, rendered_template
from qwonnx.export.checkpoint.gguf.config_document import check_is_model, shortest
from qwonnx.export.checkpoint.gguf.header import GgufFile
from qwonnx.export.checkpoint.tokenizer_files import FRAME, QWEN_SPLIT, TokenizerSource
from qwonnx.export.errors import CheckpointError
from qwonnx.runtime.artifact.strict_json import quoted

_MODEL, _PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
_TOKENS, _KINDS, _MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"
_TEMPLATE, _NAMED_TEMPLATE = "tokenizer.chat_template", "tokenizer.chat_template."

# The format's numbers of a token's kind.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5

# Control tokens to llama.cpp, and ordinary added tokens to Qwen 3.5's tokenizer.
_NOT_SPECIAL = frozenset(
    f"<|{name}|>" for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
)

# The pre-tokenizers by llama.cpp's names. Qwen 2's keeps combining marks apart from letters.
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {"qwen35": QWEN_SPLIT, "qwen2": QWEN_SPLIT | {"pattern": {"Regex": _QWEN2_PATTERN}}}

_SPECIAL_IDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}
_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True, slots=True)
class GgufTexts:
    """What a file says about text. generation is the content of generation_config.json."""

    tokenizer: TokenizerSource
    template: TemplateSource
    generation: bytes


def gguf_texts(file: GgufFile) -> GgufTexts:
    """The texts of a model's first file.

    Raises:
        CheckpointError: the tokenizer is missing, malformed or of another kind, or the template is malformed.
    """
    check_is_model(file)
    tokens = _strings(file, _TOKENS)
    by_name = {
        name: tokens[number]
        for name, key in _SPECIAL_IDS.items()
        if type(number := file.metadata.get(key)) is int and 0 <= number < len(tokens)
    }
    return GgufTexts(_tokenizer(file, tokens), _template(file, by_name), _generation(file))


def _tokenizer(file: GgufFile, tokens: list[str]) -> TokenizerSource:
    model, pre = (file.metadata.get(key) for key in (_MODEL, _PRE))
    if model != "gpt2" or pre not in _SPLITS:
        raise _unusable(file.path, f"its tokenizer is {quoted(model)} with the pre-tokenizer {quoted(pre)}")
    kinds, merges = file.array(_KINDS), _strings(file, _MERGES)
    if kinds is None or len(kinds) != len(tokens):
        raise _unusable(file.path, f"{_TOKENS} and {_KINDS} differ in length")
    vocabulary: dict[str, int] = {}
    added: list[dict[str, Any]] = []
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind == _UNUSED:
            continue
        if kind in (_CONTROL, _USER_DEFINED):
            special = kind == _CONTROL and token not in _NOT_SPECIAL
            added.append({"id": number, "content": token, **flags, "special": special})
        elif kind != _NORMAL or token in vocabulary:
            raise _unusable(file.path, f"its token {number} is of the kind {kind}, or is there twice")
        else:
            vocabulary[token] = number
    pairs = [merge.split(" ") for merge in merges]
    byte_level = FRAME["pre_tokenizer"]["pretokenizers"][1]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **FRAME,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_SPLITS[pre], byte_level]},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": pairs},
    }
    return TokenizerSource(json.dumps(document, ensure_ascii=False).encode(), ())


def _template(file: GgufFile, special: dict[str, str]) -> TemplateSource:
    by_name = {"default": file.metadata[_TEMPLATE]} if _TEMPLATE in file.metadata else {}
    by_name |= {
        key.removeprefix(_NAMED_TEMPLATE): text
        for key, text in file.metadata.items()
        if key.startswith(_NAMED_TEMPLATE)
    }
    if not by_name:
        return NO_TEMPLATE
    if not all(isinstance(text, str) for text in by_name.values()):
        raise _unusable(file.path, "a chat template is not a text")
    return rendered_template(by_name, file.path, special)


def _generation(file: GgufFile) -> bytes:
    """What generation_config.json says: how to sample, and the tokens that end an answer."""
    found: dict[str, Any] = {"do_sample": True} if any(key in file.metadata for key in _SAMPLING) else {}
    for key, name in _SAMPLING.items():
        value = file.metadata.get(key)
        if value is not None:
            found[name] = shortest(value) if isinstance(value, float) else value
    end = file.metadata.get(_SPECIAL_IDS["eos_token"])
    if end is not None:
        found["eos_token_id"] = end
    return json.dumps(found, indent=2).encode()


def _strings(file: GgufFile, key: str) -> list[str]:
    found = file.array(key)
    if found is None or not all(isinstance(text, str) for text in found):
        raise _unusable(file.path, f"it has no list {key}")
    return found


def _unusable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be used ({reason}): export the checkpoint that it was made from")
