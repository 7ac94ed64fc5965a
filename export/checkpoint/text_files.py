"""The checkpoint's text files that go into an artifact as they are, checked as the runtime will read them.

An artifact that does not open is worth nothing, and the machine that exports is the one to say so: here a tokenizer,
a chat template or a generation_config.json that cannot be used is refused before anything is traced. The rules are
those of the runtime's tokenizer.py, chat_template.py, sampling_params.py and model_files.py; a test holds the two
together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers.pre_tokenizers import ByteLevel

from qwonnx.export.errors import CheckpointError
from qwonnx.runtime.artifact.strict_json import StrictJsonError, parse_object, quoted

TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"

# Qwen 3.5's tokenizer.json has 13 to 20 MB, by its spacing.
_MAX_BYTES = {TOKENIZER: 128 << 20, CHAT_TEMPLATE: 4 << 20, GENERATION_CONFIG: 1 << 20}
_MAX_TEMPLATE_CHARACTERS = 1 << 20

# The parts a byte-level BPE is made of. The library is given no others: some abort the process on a few bad bytes
# (a "Precompiled" normalizer asks for memory by a number in the file).
_COMPONENTS: Mapping[str, frozenset[str]] = {
    "model": frozenset({"BPE"}),
    "decoder": frozenset({"ByteLevel"}),
    "normalizer": frozenset({"Sequence", "NFC", "NFD", "NFKC", "NFKD"}),
    "pre_tokenizer": frozenset({"Sequence", "Split", "ByteLevel", "Digits"}),
    "post_processor": frozenset({"Sequence", "ByteLevel", "TemplateProcessing"}),
}
_NEEDED = ("model", "decoder")

# What generation_config.json may recommend, and between which numbers; others of its fields are not read.
_SAMPLING_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (math.ulp(0.0), 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
}


def check_text_files(checkpoint: Path, vocab_size: int) -> tuple[str, ...]:
    """Check the tokenizer, and the chat template and generation_config.json where there are any.

    A tokenizer of the published size takes 2 s and, while it is loaded, 0.2 GB of memory.

    Args:
        checkpoint: its folder.
        vocab_size: rows of the embedding, beyond which no token may lie.

    Returns:
        Names of the files that there are.

    Raises:
        CheckpointError: the tokenizer is missing, or one of the files cannot be used.
    """
    checks: dict[str, Callable[[bytes], None]] = {
        TOKENIZER: lambda content: _check_tokenizer(content, vocab_size),
        CHAT_TEMPLATE: _check_chat_template,
        GENERATION_CONFIG: _check_generation_config,
    }
    names = []
    for name, check in checks.items():
        path = checkpoint / name
        if not path.is_file():
            if name == TOKENIZER:
                raise CheckpointError(f"{checkpoint} has no {TOKENIZER}: download it from the model's hub page")
            continue
        try:
            check(_read(path, _MAX_BYTES[name]))
        except _UnusableError as error:
            raise CheckpointError(f"{path} cannot be used ({error}): download it again") from error
        names.append(name)
    return tuple(names)


class _UnusableError(Exception):
    """Why a file cannot be used: a phrase for check_text_files' sentence."""


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{path} cannot be read ({reason}): check the file and its permissions") from error
    if len(content) > max_bytes:
        raise CheckpointError(f"{path} is larger than {max_bytes >> 20} MiB: it is not the model's own")
    return content


def _object(content: bytes) -> dict[str, Any]:
    try:
        return parse_object(content)
    except StrictJsonError as error:
        raise _UnusableError(str(error)) from error


def _check_tokenizer(content: bytes, vocab_size: int) -> None:
    largest = _check_components(_object(content))  # parsed, it is as large as what the library makes of it
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and its panics are not even that
        raise _UnusableError(quoted(str(error))) from error
    if missing := [character for character in ByteLevel.alphabet() if tokenizer.token_to_id(character) is None]:
        raise _UnusableError(f"it has no token for {len(missing)} of the 256 bytes")
    if largest >= vocab_size:
        raise _UnusableError(f"it has the token {largest} and the model's vocab_size is {vocab_size}")


def _check_components(document: dict[str, Any]) -> int:
    """Check what a tokenizer is made of; returns the largest id of a token."""
    for name, allowed in _COMPONENTS.items():
        for kind in _kinds(document.get(name)):
            if not (isinstance(kind, str) and kind in allowed) and (kind is not None or name in _NEEDED):
                raise _UnusableError(f"its {name} is of type {quoted(kind)}: no byte-level BPE has one")
    if document["model"].get("dropout") is not None:
        raise _UnusableError("its model has a dropout: a text would have other tokens every time")
    vocabulary, added = document["model"].get("vocab"), document.get("added_tokens")
    if not isinstance(vocabulary, dict) or not vocabulary or not isinstance(added, list | None):
        raise _UnusableError("it has no vocabulary")
    ids = (*vocabulary.values(), *(token.get("id") if isinstance(token, dict) else None for token in added or ()))
    if odd := [token for token in ids if type(token) is not int]:
        raise _UnusableError(f"a token has the id {quoted(odd[0])}")
    largest: int = max(ids)
    return largest


def _kinds(component: Any) -> Iterator[Any]:
    """The types of a part of the tokenizer and of the parts in it; None for one that is missing."""
    pending = [component]
    while pending:
        part = pending.pop()
        if not isinstance(part, dict):
            yield part
            continue
        yield part.get("type", "")  # "" is allowed nowhere
        if part.get("type") == "Sequence":
            pending.extend(inner for value in part.values() if isinstance(value, list) for inner in value)


def _check_chat_template(content: bytes) -> None:
    try:
        source = content.decode()
    except UnicodeDecodeError as error:
        raise _UnusableError(str(error)) from error
    if len(source) > _MAX_TEMPLATE_CHARACTERS:
        raise _UnusableError(f"it has {len(source)} characters, and {_MAX_TEMPLATE_CHARACTERS} at most fit")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    try:
        environment.from_string(source)
    except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # Jinja's own complaints, and those of Python's compiler, to which it hands what it makes of a template.
        raise _UnusableError(quoted(str(error)) if str(error) else type(error).__name__) from error


def _check_generation_config(content: bytes) -> None:
    config = _object(content)
    ends = config.get("eos_token_id")
    if not all(
        type(token) is int for token in (ends if isinstance(ends, list) else [ends] if ends is not None else [])
    ):
        raise _UnusableError(f"eos_token_id is {quoted(ends)}, not ids of tokens")
    if config.get("do_sample") is False:
        return
    for name, (low, high) in _SAMPLING_RANGES.items():
        value = config.get(name)
        if value is not None and not (_is_number(value) and low <= value <= high):
            raise _UnusableError(f"{name} is {quoted(value)}, not a number from {low:g} to {high:g}")
    top_k = config.get("top_k")
    if top_k and not (_is_number(top_k) and 1 <= top_k < 1 << 31):
        raise _UnusableError(f"top_k is {quoted(top_k)}, not a number of tokens")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
