"""Checks the checkpoint's text files, which are copied unchanged into an artifact.

The checks use the runtime's own readers. They refuse a tokenizer, a chat template or a generation_config.json that the
runtime would not open, before anything is traced.
"""

from __future__ import annotations

from pathlib import Path

from qwonnx.export.errors import CheckpointError
from qwonnx.runtime.artifact.file_names import CHAT_TEMPLATE_FILE, GENERATION_CONFIG_FILE, TOKENIZER_FILE
from qwonnx.runtime.artifact.strict_json import StrictJsonError, parse_object, quoted
from qwonnx.runtime.errors import InvalidRequestError, TokenizerError
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.text.chat_template import ChatTemplate
from qwonnx.runtime.text.end_tokens import end_token_ids
from qwonnx.runtime.text.tokenizer import MAX_FILE_BYTES, Tokenizer

_MAX_BYTES = {TOKENIZER_FILE: MAX_FILE_BYTES, CHAT_TEMPLATE_FILE: 4 << 20, GENERATION_CONFIG_FILE: 1 << 20}


def check_text_files(checkpoint: Path, vocab_size: int) -> tuple[str, ...]:
    """Check the tokenizer, and the chat template and generation_config.json if they exist.

    Loading a tokenizer of the published size takes 2 s and 0.2 GB of memory.

    Args:
        checkpoint: its folder.
        vocab_size: rows of the embedding; every token id must be smaller.

    Returns:
        Names of the files that exist.

    Raises:
        CheckpointError: the tokenizer is missing, or one of the files cannot be used.
    """
    tokenizer = load_tokenizer(checkpoint)
    if tokenizer.largest_id >= vocab_size:
        raise _unusable(
            checkpoint / TOKENIZER_FILE,
            f"it has the token {tokenizer.largest_id} and the model's vocab_size is {vocab_size}",
        )
    names = [TOKENIZER_FILE]
    for name in (CHAT_TEMPLATE_FILE, GENERATION_CONFIG_FILE):
        path = checkpoint / name
        if not path.is_file():
            continue
        content = _read(path)
        try:
            if name == CHAT_TEMPLATE_FILE:
                ChatTemplate(content.decode())
            else:
                config = parse_object(content)
                SamplingParams.defaults_from(config)
                end_token_ids(config, tokenizer)
        except (InvalidRequestError, UnicodeDecodeError) as error:
            raise _unusable(path, quoted(str(error))) from error
        except StrictJsonError as error:
            raise _unusable(path, str(error)) from error
        names.append(name)
    return tuple(names)


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer of a checkpoint's folder.

    Raises:
        CheckpointError: it is missing, or cannot be used.
    """
    path = checkpoint / TOKENIZER_FILE
    if not path.is_file():
        raise CheckpointError(f"{checkpoint} has no {TOKENIZER_FILE}: download it from the model's hub page")
    try:
        return Tokenizer(_read(path))
    except TokenizerError as error:
        raise _unusable(path, error.reason) from error


def _unusable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be used ({reason}): download it again")


def _read(path: Path) -> bytes:
    max_bytes = _MAX_BYTES[path.name]
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{path} cannot be read ({reason}): check the file and its permissions") from error
    if len(content) > max_bytes:
        raise CheckpointError(f"{path} is larger than {max_bytes >> 20} MiB: it is not the model's own")
    return content
