"""The text files of an artifact: made from a checkpoint's, and checked with the runtime's own readers.

A tokenizer, a chat template or a generation_config.json that the runtime would not open is refused before anything is
traced. tokenizer_files.py and chat_templates.py say from which files they are. vocabulary.bin is made of the tokenizer,
so that the runtime need not load it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qwonnx.export.checkpoint.chat_templates import chat_template_source
from qwonnx.export.checkpoint.gguf.files import is_gguf
from qwonnx.export.checkpoint.gguf.header import read_gguf
from qwonnx.export.checkpoint.gguf.text import gguf_texts
from qwonnx.export.checkpoint.tokenizer_files import read_text_file, tokenizer_source, unusable
from qwonnx.runtime.artifact.file_names import (
    CHAT_TEMPLATE_FILE,
    GENERATION_CONFIG_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
)
from qwonnx.runtime.artifact.strict_json import StrictJsonError, parse_object, quoted
from qwonnx.runtime.errors import InvalidRequestError, TemplateError, TokenizerError
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.text.chat_template import ChatTemplate
from qwonnx.runtime.text.end_tokens import end_token_ids
from qwonnx.runtime.text.library_vocabulary import LibraryVocabulary
from qwonnx.runtime.text.pieces import UnknownKindError
from qwonnx.runtime.text.tokenizer import Tokenizer
from qwonnx.runtime.text.tokenizer_frame import TokenizerFrame

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
    """The text files that an export of a checkpoint's folder writes, as they are or as they are made, unchecked.

    Raises:
        CheckpointError: there is no tokenizer, or a file cannot be used.
    """
    if is_gguf(checkpoint):
        made = gguf_texts(read_gguf(checkpoint))
        tokenizer, template = made.tokenizer, made.template
    else:
        tokenizer, template = tokenizer_source(checkpoint), chat_template_source(checkpoint)
    contents = {TOKENIZER_FILE: tokenizer.content}
    if template.text is not None:
        contents[CHAT_TEMPLATE_FILE] = template.text.encode()
    if is_gguf(checkpoint):
        contents[GENERATION_CONFIG_FILE] = made.generation
    elif (checkpoint / GENERATION_CONFIG_FILE).is_file():
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
    content = files.contents[TOKENIZER_FILE]
    try:
        library = LibraryVocabulary(TokenizerFrame.read(content))
        tokenizer = Tokenizer(content, lambda _: library)
    except TokenizerError as error:
        raise unusable(checkpoint / TOKENIZER_FILE, error.reason) from error
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
    return CheckedTextFiles(_with_vocabulary(files, library), tokenizer, chat_template, eos_token_ids)


def vocabulary_bytes(files: TextFiles) -> int | None:
    """The size of the vocabulary.bin that an export writes beside these files; None if it writes none."""
    from qwonnx.export.checkpoint.vocabulary_writer import vocabulary_tables  # numpy, which most plans do not need

    try:
        return vocabulary_tables(files.contents[TOKENIZER_FILE]).num_bytes
    except (UnknownKindError, TokenizerError):
        return None


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer of a checkpoint's folder.

    Raises:
        CheckpointError: it is missing, or cannot be used.
    """
    return _opened(checkpoint, read_text_files(checkpoint).contents[TOKENIZER_FILE])


def _with_vocabulary(files: TextFiles, library: LibraryVocabulary) -> TextFiles:
    """The files and the vocabulary.bin of their tokenizer, or a note why there is none."""
    from qwonnx.export.checkpoint.vocabulary_writer import vocabulary_tables

    try:
        made = vocabulary_tables(files.contents[TOKENIZER_FILE]).packed(library.merged)
    except (UnknownKindError, TokenizerError) as error:
        reason = error.reason if isinstance(error, TokenizerError) else error
        note = f"tokenizer: {reason}, so there is no {VOCABULARY_FILE} and every start loads {TOKENIZER_FILE}"
        return replace(files, notes=(*files.notes, note))
    return replace(files, contents={**files.contents, VOCABULARY_FILE: made})


def _opened(checkpoint: Path, content: bytes) -> Tokenizer:
    try:
        return Tokenizer(content)
    except TokenizerError as error:
        raise unusable(checkpoint / TOKENIZER_FILE, error.reason) from error
