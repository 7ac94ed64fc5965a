"""Verdicts on artifacts that are right, wrongly quantised, damaged, of another model or with another tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from safetensors.torch import load_file, save_file

from infra.miniature.checkpoint import TRAINED
from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.errors import VerificationError
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.export.verification.result import Verification
from qwonnx.export.verification.verdict import WRITTEN, Verdict
from qwonnx.export.verification.verification import VerificationOptions, verify_artifact
from qwonnx.export.verification.work_folder import work_folder_of
from qwonnx.runtime.artifact.folder import file_sha256
from qwonnx.runtime.artifact.manifest import ArtifactFileError
from tests.checkpoints import write_tiny

pytestmark = pytest.mark.usefixtures("one_thread", "traced_once")

TWO_LAYERS = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
TEXT = "The lighthouse keeper wrote down the weather every morning, and in forty years he missed two days. " * 3
Values = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("verdicts") / "checkpoint", text_overrides=TWO_LAYERS)


@pytest.fixture(scope="module")
def exported(checkpoint: Path, traced_once: None) -> Callable[[str], Path]:
    """The checkpoint's artifact by a preset or a recipe; "best" has keys and values in int8."""
    options = {
        "fp32": ExportOptions(weights="fp32"),
        "int8": ExportOptions(weights="int8"),
        "int4": ExportOptions(recipe=Recipe.preset("int4")),
        "balanced": ExportOptions(),
        "best": ExportOptions(recipe=Recipe.named("best"), kv="int8"),
    }

    def export(name: str) -> Path:
        out = checkpoint.with_name(name)
        if not out.exists():
            export_checkpoint(checkpoint, out, options[name])
        return out

    return export


@pytest.fixture
def copied(exported: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """An artifact that may be changed."""
    return lambda name: Path(shutil.copytree(exported(name), tmp_path / name))


def verified(artifact: Path, checkpoint: Path, text: str | None = TEXT) -> Verification:
    found = verify_artifact(artifact, checkpoint, VerificationOptions(text=text))
    assert not work_folder_of(artifact).exists() or found.evidence is None
    return found


def rehash(folder: Path, name: str) -> None:
    """Say in the manifest that a changed file is right."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for entry in manifest["files"]:
        if entry["path"] == name:
            entry.update(sha256=file_sha256(folder / name), size=(folder / name).stat().st_size)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def edit_weight(folder: Path, name: str, change: Callable[[Values], Values]) -> None:
    """Change a float32 tensor of the graph in its file."""
    model = onnx.load(folder / "decoder.onnx", load_external_data=False)
    (tensor,) = [each for each in model.graph.initializer if each.name == name]
    place = {entry.key: entry.value for entry in tensor.external_data}
    path, offset = folder / place["location"], int(place["offset"])
    content = bytearray(path.read_bytes())
    here = slice(offset, offset + int(place["length"]))
    content[here] = change(np.frombuffer(bytes(content[here]), np.float32)).astype(np.float32).tobytes()
    path.write_bytes(content)
    rehash(folder, path.name)


def edited(checkpoint: Path, out: Path, name: str, factor: float) -> Path:
    """A checkpoint with one tensor changed."""
    shutil.copytree(checkpoint, out)
    tensors = load_file(out / "model.safetensors")
    tensors[name] *= factor
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def test_a_right_artifact_of_floats_is_equal(exported: Callable[[str], Path], checkpoint: Path) -> None:
    found = verified(exported("fp32"), checkpoint)
    assert found.decision.verdict is Verdict.EQUAL, found.decision
    assert found.evidence is not None
    assert max(part.error for part in found.evidence.parts) < 1e-4
    assert [part.name for part in found.evidence.parts] == ["embedding", "layer 0", "layer 1", "head"]
    assert found.evidence.experts_used is not None


@pytest.mark.parametrize("recipe", ["int8", "int4", "balanced", "best"])
def test_right_artifacts_of_recipes_are_quantised_as_these_say(
    exported: Callable[[str], Path], checkpoint: Path, recipe: str
) -> None:
    decision = verified(exported(recipe), checkpoint).decision
    assert decision.verdict is Verdict.QUANTISED, decision
    assert decision.bounds is not None
    assert recipe in decision.bounds.recipe


def test_another_layout_of_the_same_weights_is_the_same_model(exported: Callable[[str], Path], tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "split", text_overrides=TWO_LAYERS, fused_experts=False, num_shards=2)
    assert verified(exported("fp32"), other).decision.verdict is Verdict.EQUAL


def test_scales_that_are_wrong_in_one_layer_are_found_there(copied: Callable[[str], Path], checkpoint: Path) -> None:
    artifact = copied("balanced")
    edit_weight(artifact, "layers.1.mlp.experts.down_proj.scales", lambda scales: scales * 2)
    decision = verified(artifact, checkpoint).decision
    assert decision.verdict is Verdict.DIFFERENT
    assert decision.reason.startswith("layer 1 differs by ")


def test_fewer_bits_than_the_artifact_says_are_found(copied: Callable[[str], Path], checkpoint: Path) -> None:
    artifact = copied("int4")
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    manifest["quantization"].update(weights="int8")
    (artifact / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    decision = verified(artifact, checkpoint).decision
    assert decision.verdict is Verdict.DIFFERENT
    assert "int8" in decision.reason


def test_another_model_of_the_same_shapes_is_found(exported: Callable[[str], Path], tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other", seed=1, text_overrides=TWO_LAYERS)
    for name in ("fp32", "balanced"):
        decision = verified(exported(name), other).decision
        assert decision.verdict is Verdict.DIFFERENT
        assert decision.reason.startswith("the embedding differs by ")


def test_another_model_of_other_shapes_needs_no_computing(exported: Callable[[str], Path], tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other", text_overrides={**TWO_LAYERS, "hidden_size": 192})
    found = verified(exported("fp32"), other)
    assert found.decision.verdict is Verdict.DIFFERENT
    assert (found.report, found.to_json()["mean_kl"]) == (None, None)
    assert "hidden_size" in found.decision.reason


def test_a_fine_tune_of_one_matrix_is_another_model(
    exported: Callable[[str], Path], checkpoint: Path, tmp_path: Path
) -> None:
    name = "model.language_model.layers.0.linear_attn.out_proj.weight"
    tuned = edited(checkpoint, tmp_path / "tuned", name, 1.5)
    decision = verified(exported("fp32"), tuned).decision
    assert decision.verdict is Verdict.DIFFERENT
    assert decision.reason.startswith("layer 0 differs by ")


def test_a_flipped_bit_is_damage_and_a_file_cut_short_does_not_open(
    copied: Callable[[str], Path], checkpoint: Path
) -> None:
    artifact = copied("balanced")
    (weights,) = artifact.glob("weights-00001.bin")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 4
    weights.write_bytes(content)
    found = verified(artifact, checkpoint)
    assert found.decision.verdict is Verdict.DIFFERENT
    assert "weights-00001.bin differs from what the export wrote: the artifact is damaged" in found.decision.reason
    weights.write_bytes(content[:-1])
    with pytest.raises(ArtifactFileError, match=r"weights-00001\.bin"):
        verified(artifact, checkpoint)


def test_another_tokenizer_is_found_and_one_that_is_only_written_otherwise_is_a_note(
    copied: Callable[[str], Path], checkpoint: Path
) -> None:
    artifact = copied("fp32")
    path = artifact / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(tokenizer, indent=3), encoding="utf-8")
    rehash(artifact, path.name)
    found = verified(artifact, checkpoint)
    assert found.decision.verdict is Verdict.EQUAL
    assert found.notes[0] == "tokenizer.json differs from the checkpoint's, and has the same tokens"
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    rehash(artifact, path.name)
    decision = verified(artifact, checkpoint).decision
    assert decision.verdict is Verdict.DIFFERENT
    assert "means other texts in its tokenizer and in the checkpoint's" in decision.reason


def test_another_chat_template_is_a_note(copied: Callable[[str], Path], checkpoint: Path) -> None:
    artifact = copied("fp32")
    (artifact / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    rehash(artifact, "chat_template.jinja")
    found = verified(artifact, checkpoint)
    assert found.decision.verdict is Verdict.EQUAL
    assert found.notes[0].startswith("chat_template.jinja differs from the checkpoint's")


def test_values_that_are_not_numbers_are_not_the_model(copied: Callable[[str], Path], checkpoint: Path) -> None:
    artifact = copied("int8")
    edit_weight(artifact, "norm.weight", lambda values: values * np.float32(np.nan))
    decision = verified(artifact, checkpoint).decision
    assert decision.verdict is Verdict.DIFFERENT
    assert "not numbers" in decision.reason


@pytest.mark.soak
def test_a_trained_model_writes_its_own_text_where_the_built_in_one_is_foreign(tmp_path: Path) -> None:
    export_checkpoint(TRAINED, tmp_path / "artifact", ExportOptions(weights="int8"))
    found = verified(tmp_path / "artifact", TRAINED, None)
    assert found.decision.verdict is Verdict.QUANTISED, found.decision
    assert "within the bound" in found.decision.reason
    assert found.text == WRITTEN
    assert found.report is not None
    assert found.report.perplexity_checkpoint < 20


def test_memory_that_a_layer_does_not_fit_is_refused(exported: Callable[[str], Path], checkpoint: Path) -> None:
    with pytest.raises(VerificationError, match="too little for a layer of this model"):
        verify_artifact(exported("fp32"), checkpoint, VerificationOptions(memory_bytes=100_000))
