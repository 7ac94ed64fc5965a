"""Verdicts on artifacts with merged adapters: layers within the memory, and peft's merge where a whole model fits."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.adapters import edits
from qwonnx.export.adapters.changes import LowRank
from qwonnx.export.errors import AdapterError
from qwonnx.export.verification import merged_by_peft
from qwonnx.export.verification.verdict import Verdict
from qwonnx.export.verification.verification import VerificationOptions, verify_artifact
from tests.export.adapters.trained import LINEAR, PARAMETERS, WEIGHTS, load, train, write_base

pytestmark = pytest.mark.usefixtures("one_thread", "traced_once")

TEXT = "The lighthouse keeper wrote down the weather every morning, and in forty years he missed two days. " * 3
OPTIONS = VerificationOptions(text=TEXT)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("adapted") / "base", text_overrides={"tie_word_embeddings": True})


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """One of projections, router, experts and the head, which parts from the embedding."""
    modules = [*LINEAR, "lm_head"]
    folder = base.with_name("adapter")
    return train(load(base), folder, r=4, target_modules=modules, target_parameters=PARAMETERS).folder


@pytest.fixture(scope="module")
def tuned(base: Path, adapter: Path, traced_once: None) -> Callable[[str], Path]:
    """The artifact with the adapter, in floats or by the default recipe."""

    def export(name: str) -> Path:
        out = base.with_name(name)
        if not out.exists():
            options = ExportOptions(adapters=(adapter,))
            export_checkpoint(base, out, dataclasses.replace(options, weights="fp32") if name == "fp32" else options)
        return out

    return export


def test_peft_merges_alike(tuned: Callable[[str], Path], base: Path, adapter: Path) -> None:
    found = verify_artifact(tuned("fp32"), base, dataclasses.replace(OPTIONS, adapters=(adapter,)))
    assert found.decision.verdict is Verdict.EQUAL
    assert found.evidence is not None
    assert found.evidence.merge_error is not None
    assert found.evidence.merge_error < 1e-5
    assert [part.name for part in found.evidence.parts] == ["embedding", "layer 0", "layer 1", "head"]
    assert any("peft" in note for note in found.notes)


def test_layers_are_compared_in_memory_that_holds_no_whole_model(
    tuned: Callable[[str], Path], base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge(*arguments: object) -> None:
        raise AssertionError("peft's model is larger than the memory")

    monkeypatch.setattr(merged_by_peft, "run_reference", merge)
    monkeypatch.setattr(merged_by_peft, "whole_model_bytes", lambda num_parameters: 10**10)
    options = dataclasses.replace(OPTIONS, adapters=(adapter,), memory_bytes=10**9)
    found = verify_artifact(tuned("quantised"), base, options)
    assert found.decision.verdict is Verdict.QUANTISED
    assert found.evidence is not None
    assert found.evidence.merge_error is None
    assert len(found.evidence.parts) == 4
    assert any("peft" in note and "10.0 GB" in note for note in found.notes)


def test_peft_may_be_missing(
    tuned: Callable[[str], Path], base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged_by_peft, "find_spec", lambda name: None)
    found = verify_artifact(tuned("fp32"), base, dataclasses.replace(OPTIONS, adapters=(adapter,)))
    assert found.decision.verdict is Verdict.EQUAL
    assert any("not installed" in note for note in found.notes)


def test_an_artifact_without_the_adapter_is_another_model(tuned: Callable[[str], Path], base: Path) -> None:
    """An adapter may change less than the artifact's recipe rounds: the manifest says that it was merged."""
    found = verify_artifact(tuned("quantised"), base, OPTIONS)
    assert found.decision.verdict is Verdict.DIFFERENT
    assert re.search(r"merged adapter \([0-9a-f]{8}\), and this compares with no adapter", found.decision.reason)


def test_another_file_of_an_adapter_is_noted(tuned: Callable[[str], Path], base: Path, adapter: Path) -> None:
    copy = Path(shutil.copytree(adapter, base.with_name("copy")))
    save_file(load_file(copy / WEIGHTS), copy / WEIGHTS, metadata={"saved": "again"})
    found = verify_artifact(tuned("fp32"), base, dataclasses.replace(OPTIONS, adapters=(copy,)))
    assert found.decision.verdict is Verdict.EQUAL
    assert any("the export merged adapter (" in note for note in found.notes)


def test_a_merge_that_is_not_peft_s_is_found(
    tuned: Callable[[str], Path], base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same wrong factor in the export and in the verification: only another implementation shows it."""

    def doubled(*arguments: object, **fields: object) -> LowRank:
        change = LowRank(*arguments, **fields)  # type: ignore[arg-type]
        return dataclasses.replace(change, scaling=2 * change.scaling)

    monkeypatch.setattr(edits, "LowRank", doubled)
    wrong = tmp_path / "wrong"
    export_checkpoint(base, wrong, ExportOptions(adapters=(adapter,), weights="fp32"))
    found = verify_artifact(wrong, base, dataclasses.replace(OPTIONS, adapters=(adapter,)))
    assert found.decision.verdict is Verdict.DIFFERENT
    assert "peft merges the adapters otherwise" in found.decision.reason


def test_an_adapter_of_another_base_is_an_error(tuned: Callable[[str], Path], base: Path, tmp_path: Path) -> None:
    other = write_base(tmp_path / "other", text_overrides={"hidden_size": 192})
    folder = train(load(other), tmp_path / "foreign", r=2, target_modules=["q_proj"]).folder
    with pytest.raises(AdapterError, match="q_proj"):
        verify_artifact(tuned("fp32"), base, dataclasses.replace(OPTIONS, adapters=(folder,)))
