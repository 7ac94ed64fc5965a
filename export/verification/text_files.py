"""Compares the texts of an artifact with those that an export of the checkpoint would write: tokenizer and template."""

from __future__ import annotations

from dataclasses import dataclass

from qwonnx.export.checkpoint.resolved_checkpoint import ResolvedCheckpoint
from qwonnx.export.checkpoint.text_files import check_text_files
from qwonnx.runtime.artifact.file_names import CHAT_TEMPLATE_FILE, GENERATION_CONFIG_FILE, TOKENIZER_FILE
from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextDifferences:
    """tokens: why token ids mean other texts, None if they mean the same. notes: differences that change no token."""

    tokens: str | None
    notes: tuple[str, ...]


def compare_texts(artifact: Artifact, tokenizer: Tokenizer, resolved: ResolvedCheckpoint, text: str) -> TextDifferences:
    """Compare the artifact's text files with the checkpoint's.

    Args:
        artifact, tokenizer: an opened artifact, and its tokenizer.
        resolved: the checkpoint.
        text: that both tokenizers read, if their files differ.

    Raises:
        CheckpointError: a text file of the checkpoint cannot be used.
    """
    checked = check_text_files(resolved.folder, resolved.config.vocab_size)
    contents = checked.files.contents
    notes = [
        f"{name} differs from the checkpoint's: it was changed after the export, or before"
        for name in (CHAT_TEMPLATE_FILE, GENERATION_CONFIG_FILE)
        if (name in contents) != artifact.has_file(name)
        or (name in contents and artifact.file(name).read_bytes() != contents[name])
    ]
    if artifact.file(TOKENIZER_FILE).read_bytes() == contents[TOKENIZER_FILE]:
        return TextDifferences(None, tuple(notes))
    other = checked.tokenizer
    if (reason := _difference(tokenizer, other, text)) is not None:
        return TextDifferences(reason, tuple(notes))
    return TextDifferences(None, (*notes, f"{TOKENIZER_FILE} differs from the checkpoint's, and has the same tokens"))


def _difference(ours: Tokenizer, theirs: Tokenizer, text: str) -> str | None:
    if ours.num_tokens != theirs.num_tokens:
        return f"its tokenizer has {ours.num_tokens} tokens and the checkpoint's {theirs.num_tokens}"
    if ours.added_token_ids != theirs.added_token_ids:
        return "its tokenizer has other added tokens than the checkpoint's"
    vocabularies = ours.vocabulary(ours.num_tokens), theirs.vocabulary(theirs.num_tokens)
    for token, (one, other) in enumerate(zip(*vocabularies, strict=True)):
        if one != other:
            shown = " and ".join(repr(each.decode(errors="replace")) for each in (one, other))
            return f"token {token} means other texts in its tokenizer and in the checkpoint's: {shown}"
    if ours.encode(text) != theirs.encode(text):
        return "its tokenizer cuts the text into other tokens than the checkpoint's"
    return None
