"""An artifact's vocabulary.bin: used where it is sound, else tokenizer.json with one warning, and never a crash."""

from __future__ import annotations

import json
import logging
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwonnx.export.checkpoint.vocabulary_writer import vocabulary_tables
from qwonnx.runtime.artifact.file_names import TOKENIZER_FILE, VOCABULARY_FILE
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.artifact.manifest import ArtifactError, ArtifactFileError
from qwonnx.runtime.errors import TokenizerError
from qwonnx.runtime.model.files import load
from qwonnx.runtime.text.artifact_tokenizer import load_tokenizer, open_tokenizer
from qwonnx.runtime.text.library_vocabulary import LibraryVocabulary
from qwonnx.runtime.text.mapped_vocabulary import MappedVocabulary
from qwonnx.runtime.text.tokenizer import Tokenizer
from qwonnx.runtime.text.tokenizer_frame import TokenizerFrame
from qwonnx.runtime.text.vocabulary_file import VocabularyFile, VocabularyFileError, VocabularyHeader
from tests.checkpoints.tokenizer import build_tokenizer
from tests.runtime import counting_model
from tests.runtime.text.many_texts import HARD_CASES
from tests.runtime.text.mapped import give_vocabulary, list_files

SOURCE = build_tokenizer()
TEXT = "Der Nordwind und die Sonne, 北風と太陽. " + "lorem" * 40
EXPECTED = Tokenizer(SOURCE).encode(TEXT)
Damage = Callable[[bytearray, VocabularyHeader], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = counting_model.make(tmp_path_factory.mktemp("made") / "artifact").folder
    give_vocabulary(folder, SOURCE)
    return folder


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "artifact"))


def is_mapped(tokenizer: Tokenizer) -> bool:
    return isinstance(tokenizer._vocabulary, MappedVocabulary)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_sound_vocabulary_is_mapped_and_the_library_is_not_loaded(
    artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load(open_artifact(artifact)).tokenizer
    (artifact / TOKENIZER_FILE).unlink()  # so that loading it would fail
    assert is_mapped(tokenizer)
    assert tokenizer.encode(TEXT) == EXPECTED
    assert tokenizer.decode(EXPECTED) == TEXT
    assert not warnings(caplog)


def test_an_artifact_without_one_opens_as_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = counting_model.make(tmp_path / "artifact").folder
    assert not is_mapped(load(open_artifact(folder)).tokenizer)
    assert not warnings(caplog)


@pytest.mark.parametrize("name", ["missing", "cut", "longer", "a bit", "empty", "a folder", "a link", "another's"])
def test_a_file_that_is_not_the_exported_one_costs_one_warning(
    name: str, artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = artifact / VOCABULARY_FILE
    content = path.read_bytes()
    path.unlink()
    if name == "cut":
        path.write_bytes(content[:-4096])
    elif name == "longer":
        path.write_bytes(content + b"\0")
    elif name == "a bit":
        path.write_bytes(content[:-9000] + bytes([content[-9000] ^ 1]) + content[-8999:])
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "a folder":
        path.mkdir()
    elif name == "a link":
        (tmp_path / "outside").write_bytes(content)
        path.symlink_to(tmp_path / "outside")
    elif name == "another's":
        other = counting_model.make(tmp_path / "other").folder
        path.write_bytes(give_vocabulary(other, json.dumps(counting_model.tokenizer_json())).read_bytes())
    tokenizer = load(open_artifact(artifact)).tokenizer
    assert not is_mapped(tokenizer)
    assert tokenizer.encode(TEXT) == EXPECTED
    assert len(warnings(caplog)) == 1
    assert VOCABULARY_FILE in warnings(caplog)[0]
    with pytest.raises(ArtifactError, match=VOCABULARY_FILE):
        open_artifact(artifact, verify=True)


def test_line_breaks_of_a_tokenizer_json_do_not_matter(artifact: Path) -> None:
    path = artifact / TOKENIZER_FILE
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    list_files(artifact)
    assert load_tokenizer(open_artifact(artifact)).encode(TEXT) == EXPECTED
    content = path.read_bytes()
    vocabulary = LibraryVocabulary(TokenizerFrame.read(content))
    (artifact / VOCABULARY_FILE).write_bytes(vocabulary_tables(content).packed(vocabulary.merged))
    list_files(artifact)
    assert is_mapped(load(open_artifact(artifact)).tokenizer)


def test_one_of_another_tokenizer_is_refused_although_the_manifest_lists_it(
    artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = counting_model.make(tmp_path / "other").folder
    foreign = give_vocabulary(other, json.dumps(counting_model.tokenizer_json())).read_bytes()
    give_vocabulary(artifact, SOURCE, foreign)
    assert load(open_artifact(artifact)).tokenizer.encode(TEXT) == EXPECTED
    assert "made from another tokenizer.json" in warnings(caplog)[0]


def test_a_tokenizer_json_that_is_damaged_is_refused_where_it_is_read(artifact: Path) -> None:
    content = (artifact / TOKENIZER_FILE).read_bytes()
    (artifact / TOKENIZER_FILE).write_bytes(content[:-1] + b" ")
    assert load(open_artifact(artifact)).tokenizer.encode(TEXT) == EXPECTED
    with pytest.raises(ArtifactError, match="changed after its export"):
        open_artifact(artifact, verify=True)
    with pytest.raises(ArtifactError, match="changed after its export"):
        load_tokenizer(open_artifact(artifact))
    (artifact / VOCABULARY_FILE).unlink()
    with pytest.raises(ArtifactError, match="changed after its export"):
        load(open_artifact(artifact))
    (artifact / TOKENIZER_FILE).write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=r"has \d+ bytes where the manifest says"):
        open_artifact(artifact)


def word(section: str, index: int, value: int) -> Damage:
    """Write a number into a section; a negative index counts from its end."""

    def write(content: bytearray, header: VocabularyHeader) -> None:
        place = header.sections[section]
        struct.pack_into("<I", content, (place.start if index >= 0 else place.stop) + 4 * index, value)

    return write


def header_word(at: int, value: int) -> Damage:
    return lambda content, _: struct.pack_into("<I", content, at, value)


def frame(change: Callable[[dict[str, object]], None]) -> Damage:
    """Write another frame, which must not be longer."""

    def write(content: bytearray, header: VocabularyHeader) -> None:
        place = header.sections["frame"]
        parts = json.loads(content[place.start : place.stop])
        change(parts)
        text = json.dumps(parts, separators=(",", ":"), ensure_ascii=False).encode()
        content[place.start : place.stop] = text.ljust(len(place))

    return write


def _number(content: bytearray, header: VocabularyHeader, section: str, index: int) -> int:
    return int(struct.unpack_from("<I", content, header.sections[section].start + 4 * index)[0])


HUGE = 0xFFFFFFFF
DAMAGES: dict[str, Damage] = {
    "another magic": header_word(0, 0),
    "a later version": header_word(8, 2),
    "no tokens": header_word(12, 0),
    "too many tokens": header_word(12, HUGE),
    "too many merges": header_word(16, HUGE),
    "slots that are no power of two": header_word(20, 1000),
    "no slots": header_word(20, 0),
    "no probes": header_word(24, 0),
    "too many probes": header_word(24, HUGE),
    "a token of gigabytes": header_word(28, HUGE),
    "tokens that are longer than stated": header_word(28, 1),
    "a frame of gigabytes": lambda content, _: struct.pack_into("<Q", content, 84, 1 << 62),
    "a text of gigabytes": lambda content, _: struct.pack_into("<Q", content, 76, 1 << 40),
    "too many classes of characters": header_word(32, HUGE),
    "no classes where characters have one": header_word(32, 0),
    "a character of no class": word("class_blocks", 4, HUGE),
    "a byte of no token": word("byte_ids", 65, HUGE),
    "a token without bytes": lambda content, header: word("starts", 299, _number(content, header, "starts", 300))(
        content, header
    ),
    "a token that begins beyond the text": word("starts", 300, HUGE),
    "a token that begins before the last": word("starts", 300, 0),
    "a last token that is cut": word("starts", -1, 5),
    "merges that begin beyond the last": word("first_merges", 200, HUGE),
    "merges that begin before the last": word("first_merges", -2, 0),
    "a merge of no token": word("rights", 3, HUGE),
    "a merge into no token": word("results", 3, HUGE),
    "a slot of no token": word("slots", 7, HUGE),
    "a frame that is not JSON": frame(lambda parts: parts.clear()),
    "a normalizer that aborts": frame(lambda parts: parts.update(normalizer={"type": "Precompiled"})),
    "another pre-tokenizer": frame(lambda parts: parts.update(pre_tokenizer=None)),
    "an added token of no id": frame(lambda parts: parts.update(added_tokens=[{"id": -1, "content": "x"}])),
    "an added token of a huge id": frame(
        lambda parts: parts.update(
            added_tokens=[
                dict.fromkeys(("special", "normalized", "single_word", "lstrip", "rstrip"), False)
                | {"id": 1 << 60, "content": "x"}
            ]
        )
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_hostile_file_is_refused_although_the_manifest_lists_it(
    name: str, artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = bytearray((artifact / VOCABULARY_FILE).read_bytes())
    DAMAGES[name](content, VocabularyHeader.read(bytes(content), len(content)))
    give_vocabulary(artifact, SOURCE, bytes(content))
    tokenizer = load(open_artifact(artifact)).tokenizer
    assert not is_mapped(tokenizer)
    assert tokenizer.encode(TEXT) == EXPECTED
    assert len(warnings(caplog)) == 1


HOSTILE_USE = """
import sys
from pathlib import Path
from qwonnx.runtime.text.artifact_tokenizer import open_tokenizer
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from tests.runtime.text.many_texts import HARD_CASES
for folder in sys.argv[1:]:
    tokenizer = open_tokenizer(open_artifact(folder))
    known = range(tokenizer.num_tokens)
    for text in (*HARD_CASES, "Der Nordwind und die Sonne"):
        assert all(token in known for token in tokenizer.encode(text)), folder
    assert sum(map(len, tokenizer.vocabulary(tokenizer.num_tokens))) < 1 << 20
    tokenizer.token_id("the")
"""


def test_a_file_with_any_numbers_gives_tokens_that_exist_or_is_refused(made: Path, tmp_path: Path) -> None:
    """In another process, which a read out of bounds would end."""
    sound, rng = (made / VOCABULARY_FILE).read_bytes(), random.Random(0)
    header = VocabularyHeader.read(sound, len(sound))
    numbers = [
        at
        for name, place in header.sections.items()
        if name not in ("frame", "text", "classes")
        for at in range(place.start, place.stop, 4)
    ]
    folders = []
    for number in range(30):
        content = bytearray(sound)
        for at in rng.sample(numbers, k=rng.choice((1, 20, 2000))):
            (kept,) = struct.unpack_from("<I", content, at)
            value = rng.choice((kept ^ 1 << rng.randrange(12), rng.randrange(header.num_tokens), 0))
            struct.pack_into("<I", content, at, value)
        folder = Path(shutil.copytree(made, tmp_path / str(number)))
        give_vocabulary(folder, SOURCE, bytes(content))
        folders.append(str(folder))
    subprocess.run([sys.executable, "-c", HOSTILE_USE, *folders], check=True, timeout=120)


def test_a_file_that_is_cut_in_use_is_replaced_by_the_library_with_one_warning(
    artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load(open_artifact(artifact)).tokenizer
    with (artifact / VOCABULARY_FILE).open("r+b") as file:
        file.truncate(10)
    assert tokenizer.encode(TEXT) == EXPECTED
    assert tokenizer.token_bytes(EXPECTED[0]) == b"Der"
    assert tokenizer.token_id("a") == Tokenizer(SOURCE).token_id("a")
    assert len(warnings(caplog)) == 1


def test_a_tokenizer_json_that_changed_is_not_loaded_later(artifact: Path) -> None:
    tokenizer = load(open_artifact(artifact)).tokenizer
    (artifact / VOCABULARY_FILE).write_bytes(b"")
    (artifact / TOKENIZER_FILE).write_text(json.dumps(counting_model.tokenizer_json()), encoding="utf-8")
    with pytest.raises(TokenizerError, match="changed after its export"):
        tokenizer.encode(TEXT)


def test_a_file_that_is_missing_without_the_manifest_listing_it_is_no_fault(
    artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (artifact / VOCABULARY_FILE).unlink()
    list_files(artifact)
    assert open_tokenizer(open_artifact(artifact, verify=True)).encode(TEXT) == EXPECTED
    assert not warnings(caplog)


def test_a_manifest_without_a_tokenizer_json_is_refused(artifact: Path) -> None:
    (artifact / TOKENIZER_FILE).unlink()
    list_files(artifact)
    with pytest.raises(ArtifactFileError, match=r"has no tokenizer\.json"):
        load(open_artifact(artifact))


def test_a_file_that_cannot_be_opened_is_refused_by_its_reader(tmp_path: Path) -> None:
    with pytest.raises(VocabularyFileError, match="cannot be mapped"):
        VocabularyFile.open(tmp_path / "absent")
    for content in (b"", b"x" * 200):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(VocabularyFileError):
            VocabularyFile.open(tmp_path / "file")


def test_hard_cases_are_the_library_s_in_an_artifact(artifact: Path) -> None:
    tokenizer, library = load(open_artifact(artifact)).tokenizer, Tokenizer(SOURCE)
    assert is_mapped(tokenizer)
    for text in HARD_CASES:
        assert tokenizer.encode(text) == library.encode(text)


def test_an_exported_artifact_has_one_and_uses_it(tiny_fp32: Artifact) -> None:
    assert tiny_fp32.has_file(VOCABULARY_FILE)
    tokenizer = open_tokenizer(open_artifact(tiny_fp32.folder, verify=True))
    assert is_mapped(tokenizer)
    assert tokenizer.encode(TEXT) == load_tokenizer(tiny_fp32).encode(TEXT)
