"""Tokenizers in all forms: loaded by the library, and mapped from the vocabulary.bin that an export would write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from qwonnx.export.checkpoint.vocabulary_writer import vocabulary_tables
from qwonnx.runtime.artifact.file_names import TOKENIZER_FILE, VOCABULARY_FILE
from qwonnx.runtime.artifact.folder import file_sha256
from qwonnx.runtime.artifact.manifest import MANIFEST_NAME
from qwonnx.runtime.native.library import VARIABLE
from qwonnx.runtime.text.library_vocabulary import LibraryVocabulary
from qwonnx.runtime.text.mapped_vocabulary import MappedVocabulary
from qwonnx.runtime.text.tokenizer import Tokenizer
from qwonnx.runtime.text.tokenizer_frame import TokenizerFrame
from qwonnx.runtime.text.vocabulary import Vocabulary
from qwonnx.runtime.text.vocabulary_file import VocabularyFile


@dataclass(frozen=True, slots=True)
class BothForms:
    """One tokenizer in all forms.

    mapped: merges by the native library, where there is one. in_python: mapped too, merges in Python.
    loads: grows by an entry when a mapped form loads the library's.
    """

    library: Tokenizer
    mapped: Tokenizer
    in_python: Tokenizer
    file: VocabularyFile
    path: Path
    loads: list[None]

    def check(self, text: str) -> None:
        """The mapped forms give the library's tokens."""
        expected = self.library.encode(text)
        for tokenizer in (self.mapped, self.in_python):
            assert tokenizer.encode(text) == expected, text[:200]


def both_forms(source: str, folder: Path) -> BothForms:
    """Write a vocabulary.bin into a folder and open it."""
    content = source.encode()
    vocabulary = LibraryVocabulary(TokenizerFrame.read(content))
    path = folder / "vocabulary.bin"
    path.write_bytes(vocabulary_tables(content).packed(vocabulary.merged))
    file = VocabularyFile.open(path)
    file.check()
    loads: list[None] = []

    def load() -> Vocabulary:
        loads.append(None)
        return vocabulary

    mapped, in_python = (Tokenizer(file.frame, lambda frame: MappedVocabulary(file, frame, load)) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(folder / "absent"))
        in_python.encode("a first text settles who merges")
    return BothForms(Tokenizer(source, lambda _: vocabulary), mapped, in_python, file, path, loads)


def give_vocabulary(folder: Path, source: str, content: bytes | None = None) -> Path:
    """Give an artifact another tokenizer.json, and its vocabulary.bin or another content; returns the latter's path."""
    (folder / TOKENIZER_FILE).write_text(source, encoding="utf-8")
    if content is None:
        vocabulary = LibraryVocabulary(TokenizerFrame.read(source))
        content = vocabulary_tables(source.encode()).packed(vocabulary.merged)
    path = folder / VOCABULARY_FILE
    path.write_bytes(content)
    list_files(folder)
    return path


def list_files(folder: Path) -> None:
    """Make the manifest list the files of the folder as they are, with their hashes."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST_NAME)
    manifest["files"] = [
        {"path": path.name, "size": path.stat().st_size, "sha256": file_sha256(path)} for path in paths
    ]
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")
