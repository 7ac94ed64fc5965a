"""vocabulary.bin: made for the tokenizers that can be mapped, always with the same bytes, and for no others."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qwonnx.export.checkpoint.text_files import check_text_files, read_text_files, vocabulary_bytes
from qwonnx.export.checkpoint.vocabulary_writer import vocabulary_tables
from qwonnx.runtime.artifact.file_names import TOKENIZER_FILE, VOCABULARY_FILE
from qwonnx.runtime.errors import TokenizerError
from qwonnx.runtime.text.library_vocabulary import LibraryVocabulary
from qwonnx.runtime.text.pieces import UnknownKindError
from qwonnx.runtime.text.tokenizer_frame import TokenizerFrame
from qwonnx.runtime.text.vocabulary_file import VocabularyFile
from tests.checkpoints.config_json import TINY_TEXT
from tests.checkpoints.tokenizer import NUM_BASE_TOKENS, build_tokenizer

ROWS = TINY_TEXT["vocab_size"]
SOURCE = json.loads(build_tokenizer())


def packed(source: bytes) -> bytes:
    return vocabulary_tables(source).packed(LibraryVocabulary(TokenizerFrame.read(source)).merged)


def changed(model: Mapping[str, Any] | None = None, **parts: Any) -> bytes:
    return json.dumps({**SOURCE, **parts, "model": {**SOURCE["model"], **(model or {})}}).encode()


def test_the_file_is_the_same_each_time_and_as_large_as_planned(tiny_checkpoint: Path) -> None:
    files = check_text_files(tiny_checkpoint, ROWS).files
    made = files.contents[VOCABULARY_FILE]
    assert made == check_text_files(tiny_checkpoint, ROWS).files.contents[VOCABULARY_FILE]
    assert made == packed(files.contents[TOKENIZER_FILE])
    assert len(made) == vocabulary_bytes(read_text_files(tiny_checkpoint))


def test_the_file_names_its_source_and_has_all_of_its_tokens(tmp_path: Path) -> None:
    source = build_tokenizer().encode()
    (tmp_path / "file").write_bytes(packed(source))
    file = VocabularyFile.open(tmp_path / "file")
    file.check()
    header = file.header
    assert header.source_sha256 == hashlib.sha256(source).digest()
    assert (header.source_bytes, header.num_tokens) == (len(source), NUM_BASE_TOKENS)
    assert header.num_merges == len(SOURCE["model"]["merges"])
    for token_id in range(header.num_tokens):
        token = file.token_bytes(token_id)
        assert file.find(token, reached=False) == token_id
        assert file.find(token + b"\0\0\0", reached=False) is None


def test_a_token_that_merging_does_not_reach_is_found_by_name_only(tmp_path: Path) -> None:
    vocab = {**SOURCE["model"]["vocab"], "qzqzqz": NUM_BASE_TOKENS}
    source = changed({"vocab": vocab}, added_tokens=[])
    (tmp_path / "file").write_bytes(packed(source))
    file = VocabularyFile.open(tmp_path / "file")
    assert file.find(b"qzqzqz", reached=False) == NUM_BASE_TOKENS
    assert file.find(b"qzqzqz", reached=True) is None
    (tmp_path / "file").write_bytes(packed(changed({"vocab": vocab, "ignore_merges": True}, added_tokens=[])))
    assert VocabularyFile.open(tmp_path / "file").find(b"qzqzqz", reached=True) == NUM_BASE_TOKENS


_SPELLING = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
UNKNOWN = {
    "an unknown token": changed({"unk_token": "a"}),
    "a prefix": changed({"continuing_subword_prefix": "##"}),
    "a suffix": changed({"end_of_word_suffix": "</w>"}),
    "bytes by name": changed({"byte_fallback": True}),
    "a gap in its ids": changed({"vocab": {**SOURCE["model"]["vocab"], "qz": 5000}}),
    "two tokens of one id": changed({"vocab": {**SOURCE["model"]["vocab"], "qz": 7}}),
    "a token outside of the alphabet": changed({"vocab": {**SOURCE["model"]["vocab"], "a b": NUM_BASE_TOKENS}}),
    "no pre-tokenizer": changed(pre_tokenizer=None),
    "an empty sequence": changed(pre_tokenizer={"type": "Sequence", "pretokenizers": []}),
    "a space in front": changed(pre_tokenizer={**_SPELLING, "add_prefix_space": True}),
    "bytes spelt twice": changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [_SPELLING, _SPELLING]}),
    "digits cut after the spelling": changed(
        pre_tokenizer={"type": "Sequence", "pretokenizers": [_SPELLING, {"type": "Digits", "individual_digits": True}]}
    ),
    "an added token of another id": changed(added_tokens=[{**SOURCE["added_tokens"][0], "id": 3}]),
    "an added token twice": changed(added_tokens=[SOURCE["added_tokens"][0]] * 2),
    "an added token without rules": changed(added_tokens=[{"id": NUM_BASE_TOKENS, "content": "<x>"}]),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_tokenizer_of_another_kind_has_no_such_file(kind: str) -> None:
    with pytest.raises(UnknownKindError):
        vocabulary_tables(UNKNOWN[kind])


@pytest.mark.parametrize(
    "model",
    [
        {"merges": ["a"]},
        {"merges": [["a", "nothing"]]},
        {"merges": [["q", "z"]]},
        {"merges": 3},
        {"vocab": {"a": 0}},
        {"vocab": [1]},
    ],
)
def test_a_model_that_the_library_refuses_is_refused(model: Mapping[str, Any]) -> None:
    source = changed(model)
    with pytest.raises(TokenizerError):
        vocabulary_tables(source)
    with pytest.raises(TokenizerError):
        LibraryVocabulary(TokenizerFrame.read(source))


def test_an_export_says_why_there_is_no_such_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    (folder / TOKENIZER_FILE).write_bytes(changed(pre_tokenizer={**_SPELLING, "add_prefix_space": True}))
    files = check_text_files(folder, ROWS).files
    assert VOCABULARY_FILE not in files.contents
    assert vocabulary_bytes(read_text_files(folder)) is None
    assert any(VOCABULARY_FILE in note and "puts a space first" in note for note in files.notes)
