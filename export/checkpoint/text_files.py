"""The text files of an artifact: made from a checkpoint's, and checked with the runtime's own readers.

A tokenizer, a chat template or a generation_config.json that the runtime would not open is refused before anything is
traced. tokenizer_files.py and chat_templates.py say from which files they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwonnx.export.checkpoint.chat_templates import chat_template_source
from qwonnx.export.checkpoint.tokenizer_files import read_text_file, tokenizer_source, unusable
from qwonnx.runtime.artifact.file_names import CHAT_TEMPLATE_FILE, GENERATION_CONFIG_FILE, TOKENIZER_FILE
from qwonnx.runtime.artifact.strict_json import StrictJsonError, parse_object, quoted
from qwonnx.runtime.errors import InvalidRequestError, TemplateError, TokenizerError
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.text.chat_template import ChatTemplate
from qwonnx.runtime.text.end_tokens import end_token_ids
from qwonnx.runtime.text.tokenizer import Tokenizer

_MAX_GENERATION_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TextFiles:
    """Contents by name of the text files of an artifact; notes are for display."""

    contents: Mapping[str, bytes]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckedTextFiles:
    """Text files that the runtime opens, and what it read from them."""

    files: TextFiles
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    eos_token_ids: frozenset[int]


def read_text_files(checkpoint: Path) -> TextFiles:
    """The text files that an export of a checkpoint's folder writes, as they are or as they are made.

    Raises:
        CheckpointError: there is no tokenizer, or a file cannot be used.
    """
    tokenizer, template = tokenizer_source(checkpoint), chat_template_source(checkpoint)
    contents = {TOKENIZER_FILE: tokenizer.content}
    if template.text is not None:
        contents[CHAT_TEMPLATE_FILE] = template.text.encode()
    if (checkpoint / GENERATION_CONFIG_FILE).is_file():
        contents[GENERATION_CONFIG_FILE] = read_text_file(checkpoint / GENERATION_CONFIG_FILE, _MAX_GENERATION_BYTES)
    return TextFiles(contents, (*tokenizer.notes, *template.notes))


def check_text_files(checkpoint: Path, vocab_size: int) -> CheckedTextFiles:
    """Read and check the tokenizer, and the chat template and generation_config.json if they exist.

    Loading a tokenizer of the published size takes 2 s and 0.2 GB of memory.

    Args:
        checkpoint: its folder.
        vocab_size: rows of the embedding; every token id must be smaller.

    Raises:
        CheckpointError: the tokenizer is missing, or one of the files cannot be used.
    """
    files = read_text_files(checkpoint)
    tokenizer = _opened(checkpoint, files.contents[TOKENIZER_FILE])
    if tokenizer.largest_id >= vocab_size:
        raise unusable(
            checkpoint / TOKENIZER_FILE,
            f"it has the token {tokenizer.largest_id} and the model's vocab_size is {vocab_size}",
        )
    template = files.contents.get(CHAT_TEMPLATE_FILE)
    try:
        chat_template = None if template is None else ChatTemplate(template.decode())
    except TemplateError as error:
        raise unusable(checkpoint / CHAT_TEMPLATE_FILE, quoted(str(error))) from error
    path = checkpoint / GENERATION_CONFIG_FILE
    try:
        generation = parse_object(files.contents.get(GENERATION_CONFIG_FILE, b"{}"))
        SamplingParams.defaults_from(generation)
        eos_token_ids = end_token_ids(generation, tokenizer)
    except InvalidRequestError as error:
        raise unusable(path, quoted(str(error))) from error
    except StrictJsonError as error:
        raise unusable(path, str(error)) from error
    return CheckedTextFiles(files, tokenizer, chat_template, eos_token_ids)


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer of a checkpoint's folder.

    Raises:
        CheckpointError: it is missing, or cannot be used.
    """
    return _opened(checkpoint, tokenizer_source(checkpoint).content)


def _opened(checkpoint: Path, content: bytes) -> Tokenizer:
    try:
        return Tokenizer(content)
    except TokenizerError as error:
        raise unusable(checkpoint / TOKENIZER_FILE, error.reason) from error
