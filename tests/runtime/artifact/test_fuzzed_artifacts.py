"""Damaged artifacts: every field of a manifest with every odd value, and files that differ from the exported ones.

Opening one yields an artifact that the engine and `qwonnx inspect` can use, or an error of one printable line.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from qwonnx.export.checkpoint.text_files import check_text_files
from qwonnx.export.errors import CheckpointError, VerificationError
from qwonnx.export.evaluation.verify import artifact_logits, verification_tokenizer
from qwonnx.handlers.cli.inspect import inspect_tables
from qwonnx.runtime.artifact.file_names import CHAT_TEMPLATE_FILE as CHAT_TEMPLATE
from qwonnx.runtime.artifact.file_names import GENERATION_CONFIG_FILE as GENERATION_CONFIG
from qwonnx.runtime.artifact.file_names import TOKENIZER_FILE as TOKENIZER
from qwonnx.runtime.artifact.folder import Artifact, file_sha256, open_artifact
from qwonnx.runtime.artifact.manifest import (
    ArtifactError,
    ArtifactFileError,
    ArtifactHashError,
    ManifestError,
)
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import QwonnxRuntimeError
from qwonnx.runtime.model import files as model_files
from qwonnx.runtime.settings import RuntimeSettings
from tests.export.checkpoint.malformed_checkpoints import NO_FILES, NO_OBJECTS, bombs, texts
from tests.export.whole.checkpoint_damage import Damage, file
from tests.export.whole.mutations import ODD_VALUES, damaged_bytes, damaged_json, paths, removed, replaced
from tests.runtime import counting_model

SETTINGS = RuntimeSettings(num_threads=1, max_num_seqs=1, max_num_batched_tokens=8, max_model_len=8, spin=False)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_model.make(tmp_path_factory.mktemp("sound") / "artifact").folder


@pytest.fixture
def artifact(sound: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "artifact"))


def opened(folder: Path) -> Artifact | str:
    """The artifact, or the line with which it is refused."""
    try:
        return open_artifact(folder)
    except ArtifactError as error:
        message = str(error)
    assert message.isprintable(), message
    assert ": " in message, "a message is a cause and a remedy"
    assert len(message) < 1000
    return message


def manifests(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Damaged manifests, by name."""
    document = json.loads((folder / "manifest.json").read_bytes())
    for place in paths(document):
        if any(isinstance(key, int) and key > 0 for key in place):
            continue  # the other items of a list are read like the first one
        where = ".".join(map(str, place))
        yield f"without {where}", json.dumps(removed(document, place)).encode()
        for number, value in enumerate(ODD_VALUES):
            yield f"{where} = odd value {number}", json.dumps(replaced(document, place, value)).encode()
    for number in range(250):
        rng = random.Random(f"manifest {number}")
        yield f"JSON {number}", damaged_json(document, rng)
        yield f"bytes {number}", damaged_bytes(json.dumps(document).encode(), rng)


def test_any_damage_to_a_manifest_is_one_line_or_an_artifact_that_can_be_used(artifact: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    outcomes = {"refused": 0, "accepted": 0, "shown": 0, "run": 0, "not run": 0}
    known: set[str] = set()
    for _, content in manifests(artifact):
        (artifact / "manifest.json").write_bytes(content)
        found = opened(artifact)
        if isinstance(found, str):
            outcomes["refused"] += 1
            continue
        outcomes["accepted"] += 1
        if "[/" in repr(found.manifest):  # text that a table could read as markup
            for table in inspect_tables(found):
                console.print(table)
            outcomes["shown"] += 1
        # The engine reads few fields of a manifest; equal values of them are tried once.
        facts = found.manifest.model
        seen = repr((facts.vocab_size, facts.max_position_embeddings, found.manifest.graphs))
        if seen not in known:
            known.add(seen)
            outcomes["run" if runs(artifact) else "not run"] += 1
    assert min(outcomes.values()) > 10, outcomes
    assert outcomes["refused"] > 4 * outcomes["accepted"], outcomes


def runs(artifact: Path) -> bool:
    """Whether the engine opens an artifact and generates a token; otherwise it must raise one of its own errors."""
    try:
        with Engine.open(artifact, SETTINGS) as engine:
            engine.warm_up()
    except (QwonnxRuntimeError, ArtifactError):
        return False
    return True


@pytest.mark.parametrize("name", [*NO_OBJECTS, *bombs()])
def test_what_is_no_manifest_is_refused(artifact: Path, name: str) -> None:
    (artifact / "manifest.json").write_bytes({**NO_OBJECTS, **bombs()}[name])
    with pytest.raises(ManifestError):
        open_artifact(artifact)
    assert isinstance(opened(artifact), str)


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES.keys())
@pytest.mark.parametrize("name", ["manifest.json", "decoder.onnx"])
def test_what_is_no_file_is_refused(artifact: Path, name: str, make: Callable[[Path], object]) -> None:
    (artifact / name).unlink()
    make(artifact / name)
    assert name in str(opened(artifact))


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "/", "\x00", "a\nb", "\ud800", "é" * 200, "x" * 300, "x/" * 400, "x" * 10**6, "a//b", "~"],
    ids=lambda path: repr(path)[:20],
)
def test_a_file_whose_name_cannot_be_is_refused(artifact: Path, path: str) -> None:
    document = json.loads((artifact / "manifest.json").read_text())
    document["files"][0]["path"] = path
    (artifact / "manifest.json").write_text(json.dumps(document))
    assert isinstance(opened(artifact), str)


@pytest.mark.parametrize("folder", ["x" * 300, "x/" * 3000, "\x00", "no\nfolder"], ids=["long", "deep", "NUL", "line"])
def test_a_folder_whose_name_cannot_be_is_refused(folder: str) -> None:
    with pytest.raises(ManifestError):
        open_artifact(folder)


def test_a_changed_byte_is_found_in_every_file_but_the_weights(sound: Path, artifact: Path) -> None:
    rng = random.Random(1)
    for entry in open_artifact(sound).manifest.files:
        content = bytearray((sound / entry.path).read_bytes())
        place = rng.randrange(len(content))
        (artifact / entry.path).write_bytes(content[:place])
        with pytest.raises(ArtifactFileError, match=entry.path):
            open_artifact(artifact)
        content[place] ^= 1
        (artifact / entry.path).write_bytes(content)
        with pytest.raises(ArtifactHashError, match=entry.path):
            open_artifact(artifact)
        shutil.copy(sound / entry.path, artifact / entry.path)
    open_artifact(artifact, verify=True)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("decoder.onnx", lambda artifact: artifact_logits(artifact, np.arange(4))),
        ("tokenizer.json", verification_tokenizer),
    ],
)
def test_what_verify_cannot_read_is_one_line(artifact: Path, name: str, use: Callable[[Artifact], object]) -> None:
    sound = open_artifact(artifact)
    (artifact / name).write_bytes(b"\x00" * 500)
    with pytest.raises(VerificationError) as caught:
        use(sound)
    assert str(caught.value).isprintable()


# The runtime must be able to read all that an export accepts. Both have the same rules, written twice.


def text_file_cases(folder: Path) -> Iterator[tuple[str, Damage]]:
    """Malformed text files, by what they do to a folder."""
    yield from texts().items()
    yield "sound", lambda folder: None
    for number in range(240):
        rng = random.Random(f"text {number}")
        name = (TOKENIZER, CHAT_TEMPLATE, GENERATION_CONFIG, GENERATION_CONFIG)[number % 4]
        content = (folder / name).read_bytes()
        damaged = damaged_bytes(content, rng)
        if name != CHAT_TEMPLATE and number % 8 < 4:
            damaged = damaged_json(json.loads(content), rng)
        yield f"{name} {number}", file(name, damaged)
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "eos_token_id", "do_sample"):
        for number, value in enumerate(ODD_VALUES):
            config = json.dumps({name: value}).encode()
            yield f"{name} {number}", file(GENERATION_CONFIG, config)


def test_whatever_text_files_the_exporter_accepts_the_runtime_can_use(sound: Path, tmp_path: Path) -> None:
    manifest = json.loads((sound / "manifest.json").read_text())
    (folder := tmp_path / "artifact").mkdir()
    accepted = refused = 0
    for name, damage in text_file_cases(sound):
        for path in folder.iterdir():
            path.unlink() if path.is_symlink() or not path.is_dir() else path.rmdir()
        for entry in manifest["files"]:
            shutil.copy(sound / entry["path"], folder)
        damage(folder)
        try:
            check_text_files(folder, counting_model.VOCAB_SIZE)
        except CheckpointError:
            refused += 1
            continue
        for entry in manifest["files"]:
            entry["size"], entry["sha256"] = (
                os.stat(folder / entry["path"]).st_size,
                file_sha256(folder / entry["path"]),
            )
        (folder / "manifest.json").write_text(json.dumps(manifest))
        loaded = model_files.load(open_artifact(folder))
        assert loaded.tokenizer.encode("Hello"), name
        accepted += 1
    assert accepted > 100
    assert refused > 300
