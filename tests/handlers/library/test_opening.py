"""What LLM() opens: artifacts, names, checkpoints that are exported into the cache, adapters."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from infra.bench.runtime_adapters import write_adapter
from qwonnx import LLM
from qwonnx.export.pipeline import ExportOptions, export_checkpoint
from qwonnx.handlers.library.opening import artifact_of
from qwonnx.handlers.models.errors import ModelStoreError
from qwonnx.runtime.artifact.manifest import ArtifactError
from qwonnx.runtime.errors import InvalidRequestError, SettingsError
from tests.checkpoints import write_tiny
from tests.handlers.library.test_llm import SETTINGS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_checkpoint_is_exported_once_and_again_if_it_changes(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_tiny(tmp_path / "tiny")
    with LLM(checkpoint, progress=True, **SETTINGS) as llm:
        artifact = llm.engine.artifact
        assert cache in artifact.folder.parents
        assert len(llm.generate("Hello", max_tokens=4, temperature=0)) >= 0
    assert "exporting" in capsys.readouterr().err
    written = (artifact.folder / "manifest.json").stat().st_mtime_ns
    assert artifact_of(str(checkpoint), True) == artifact.folder
    assert (artifact.folder / "manifest.json").stat().st_mtime_ns == written
    assert artifact_of("tiny", None) == artifact.folder  # by its name
    capsys.readouterr()
    later = time.time() + 5
    os.utime(checkpoint / "config.json", (later, later))
    assert artifact_of(checkpoint, None) == artifact.folder
    assert (artifact.folder / "manifest.json").stat().st_mtime_ns != written
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"exporting {checkpoint}: ") for line in said] == [True], "no terminal: a line"
    os.utime(checkpoint / "config.json", (later + 60, later + 60))
    artifact_of(checkpoint, False)
    assert capsys.readouterr().err == ""


def test_what_is_none_is_said_in_one_line(tmp_path: Path) -> None:
    for given, kind in (("no-such-model", ModelStoreError), ("./nothing", ArtifactError), (tmp_path, Exception)):
        with pytest.raises(kind) as refusal:
            LLM(given)
        assert "\n" not in str(refusal.value)


@pytest.fixture(scope="module")
def slots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that takes adapters, with two of them beside it."""
    folder = tmp_path_factory.mktemp("slots")
    options = ExportOptions(weights="fp32", activations="float32", runtime_adapters=("q_proj", "o_proj"))
    export_checkpoint(write_tiny(folder / "checkpoint"), folder / "artifact", options)
    for seed, name in enumerate(("one", "two")):
        write_adapter(folder / "artifact", folder / name, 8, seed, 0.5)
    return folder


def test_an_adapter_answers_and_others_are_chosen_by_name(slots: Path) -> None:
    artifact, settings = slots / "artifact", {**SETTINGS, "max_model_len": 128}
    with LLM(artifact, **settings) as plain:
        base = plain.generate("Hello there", max_tokens=12, temperature=0)
    with LLM(artifact, adapter=slots / "one", **settings) as llm:
        one = llm.generate("Hello there", max_tokens=12, temperature=0)
        assert one != base
        assert llm.generate("Hello there", max_tokens=12, temperature=0, adapter="") == base
        assert "adapters=['adapter']" in repr(llm)
    with LLM(artifact, adapter={"a": slots / "one", "b": slots / "two"}, **settings) as llm:
        assert llm.generate("Hello there", max_tokens=12, temperature=0) == base
        assert llm.generate("Hello there", max_tokens=12, temperature=0, adapter="a") == one
        assert llm.generate("Hello there", max_tokens=12, temperature=0, adapter="b") not in (base, one)
        with pytest.raises(InvalidRequestError, match="no adapter 'c'"):
            llm.generate("Hello there", adapter="c")


def test_an_artifact_without_slots_says_how_to_get_them(counting_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="export with --runtime-adapters"):
        LLM(counting_folder, adapter=tmp_path)
