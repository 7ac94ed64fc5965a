"""The whole export: every form of checkpoint, no artifact after a failure, and resuming."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.checkpoint import config as config_module
from qwonnx.export.errors import (
    CheckpointError,
    ExportError,
    MissingTensorError,
    OutputError,
    TensorFormatError,
    UnsupportedModelError,
    UnusedTensorError,
)
from qwonnx.export.evaluation.verify import artifact_logits
from qwonnx.export.weight_files.progress import ExportProgress
from qwonnx.runtime.artifact import strict_json
from qwonnx.runtime.artifact.folder import Artifact, file_sha256, open_artifact
from qwonnx.runtime.artifact.manifest import ArtifactError
from tests.checkpoints import write_tiny

FP32 = ExportOptions(weights="fp32")
INT4 = ExportOptions(weights="int4")

FORMS: dict[str, dict[str, Any]] = {
    "one expert a tensor": {"fused_experts": False},
    "shards with an index": {"num_shards": 3},
    "flat names": {"architecture": "Qwen3_5MoeForCausalLM"},
    "dense": {"architecture": "Qwen3_5ForConditionalGeneration"},
    "dense with flat names": {"architecture": "Qwen3_5ForCausalLM"},
    "tied embeddings": {"tie_word_embeddings": True},
    "float16": {"dtype": "F16"},
    "float32": {"dtype": "F32"},
    "with a draft head": {"mtp": True},
    "three value heads a key head": {"text_overrides": {"linear_num_value_heads": 6}},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_9_every_form_of_checkpoint_equals_transformers(tmp_path: Path, form: dict[str, Any]) -> None:
    checkpoint = write_tiny(tmp_path / "checkpoint", **form)
    export_checkpoint(checkpoint, tmp_path / "artifact", FP32)
    prompt = np.random.default_rng(0).integers(0, 256, 70)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor(prompt)[None]).logits[0].numpy()
    logits = artifact_logits(open_artifact(tmp_path / "artifact"), prompt, 33)
    # A tied head's logits are as wide as its embeddings make them; float32 is no finer than they are.
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1.0, float(expected.std())), rtol=0)


def test_a_tied_matrix_is_stored_once_and_serves_both_ends(tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path / "checkpoint", tie_word_embeddings=True)
    manifest = export_checkpoint(checkpoint, tmp_path / "artifact", INT4)
    kinds = {group.kind for group in manifest.quantization.groups}
    assert "embedding" in kinds
    assert "lm_head" not in kinds
    logits = artifact_logits(open_artifact(tmp_path / "artifact"), np.arange(8))
    assert np.isfinite(logits).all()


def test_two_exports_of_one_checkpoint_are_equal_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name, threads in (("first", 1), ("second", 2)):
        export_checkpoint(tiny_checkpoint, tmp_path / name, ExportOptions(weights="int4", num_threads=threads))
    first, second = (
        {path.name: file_sha256(path) for path in (tmp_path / name).iterdir()} for name in ("first", "second")
    )
    assert first == second


def test_the_manifest_lists_every_file_and_sizes_add_up(export_tiny: Callable[[ExportOptions], Artifact]) -> None:
    artifact = export_tiny(INT4)
    listed = {entry.path for entry in artifact.manifest.files}
    assert listed | {"manifest.json"} == {path.name for path in artifact.folder.iterdir()}
    weights = sum(entry.size for entry in artifact.manifest.files if entry.path.startswith("weights-"))
    counted = sum(group.num_bytes for group in artifact.manifest.quantization.groups)
    assert counted <= weights < counted + 4096 * 200  # tensors are aligned, and nothing else is in between
    assert artifact.manifest.quantization.activations == "int8"


def test_progress_counts_every_byte_of_the_text_model_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    seen: list[ExportProgress] = []
    export_checkpoint(tiny_checkpoint, tmp_path / "artifact", INT4, on_progress=seen.append)
    assert list(dict.fromkeys(progress.stage for progress in seen)) == ["trace", "weights", "finish"]
    counts = [progress.done_bytes for progress in seen if progress.stage == "weights"]
    assert counts == sorted(counts)
    assert counts[-1] == next(progress.total_bytes for progress in seen if progress.stage == "weights")


def _assert_fails(checkpoint: Path, folder: Path, kind: type[ExportError], *words: str) -> None:
    folder.mkdir()
    seen: list[ExportProgress] = []
    with pytest.raises(kind) as caught:
        export_checkpoint(checkpoint, folder / "artifact", FP32, on_progress=seen.append)
    assert seen == [], "it was found before tracing"
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert list(folder.iterdir()) == [], "nothing is left behind"


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path / "checkpoint")
    config = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(config.replace("Qwen3_5MoeForConditionalGeneration", "LlamaForCausalLM"))
    _assert_fails(checkpoint, tmp_path / "out", UnsupportedModelError, "LlamaForCausalLM")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path / "checkpoint", num_shards=3)
    shard = sorted(checkpoint.glob("*.safetensors"))[1]
    shard.unlink()
    _assert_fails(checkpoint, tmp_path / "out", MissingTensorError, shard.name)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path / "checkpoint")
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(content[:-100])
    _assert_fails(checkpoint, tmp_path / "out", TensorFormatError, "model.safetensors")


def test_an_index_that_points_outside_the_folder_is_refused(tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path / "checkpoint", num_shards=2)
    index = checkpoint / "model.safetensors.index.json"
    shard = sorted(checkpoint.glob("*.safetensors"))[0]
    shard.rename(tmp_path / shard.name)
    index.write_text(index.read_text().replace(shard.name, f"../{shard.name}"))
    _assert_fails(checkpoint, tmp_path / "out", CheckpointError, "../")


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path / "checkpoint")
    config = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(
        config.replace('"moe_intermediate_size": 64', '"moe_intermediate_size": 32')
    )
    _assert_fails(checkpoint, tmp_path / "out", TensorFormatError, "mlp.experts", "128", "64")


def test_a_tensor_that_nothing_uses_is_named(tmp_path: Path) -> None:
    checkpoint = write_tiny(
        tmp_path / "checkpoint", extra_tensors={"model.language_model.layers.0.mystery.weight": (4, 4)}
    )
    _assert_fails(checkpoint, tmp_path / "out", UnusedTensorError, "layers.0.mystery.weight")


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path / "checkpoint")
    (checkpoint / "tokenizer.json").unlink()
    _assert_fails(checkpoint, tmp_path / "out", CheckpointError, "tokenizer.json")


@pytest.mark.parametrize(
    "options",
    [{"target": "tpu"}, {"weights": "int5"}, {"weight_block_size": 24}, {"activations": "int4"}, {"kv": "int2"}],
)
def test_an_option_that_does_not_exist_is_refused_at_once(
    tiny_checkpoint: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ExportError, match=str(next(iter(options.values())))):
        export_checkpoint(tiny_checkpoint, tmp_path / "artifact", ExportOptions(**options))
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_refused_at_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"memory of 10\.0 MB is less than the 64\.0 MB"):
        export_checkpoint(tiny_checkpoint, tmp_path / "artifact", ExportOptions(memory_bytes=10_000_000))
    assert list(tmp_path.iterdir()) == []


def _interrupt_at(stage: str) -> Callable[[ExportProgress], None]:
    def interrupt(progress: ExportProgress) -> None:
        if progress.stage == stage:
            raise KeyboardInterrupt

    return interrupt


@pytest.mark.parametrize("stage", ["trace", "weights"])
def test_an_export_that_is_interrupted_before_it_has_written_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, stage: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(tiny_checkpoint, tmp_path / "artifact", INT4, on_progress=_interrupt_at(stage))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_opens_nowhere_and_is_resumed_to_the_same_bytes(
    tiny_checkpoint: Path, tmp_path: Path, export_tiny: Callable[[ExportOptions], Artifact]
) -> None:
    out, seen = tmp_path / "artifact", list[ExportProgress]()
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(tiny_checkpoint, out, INT4, on_progress=_interrupt_at("finish"))
    assert [path.name for path in tmp_path.iterdir()] == [".artifact.incomplete"]
    with pytest.raises(ArtifactError):
        open_artifact(tmp_path / ".artifact.incomplete")
    resume = dataclasses.replace(INT4, resume=True)
    with pytest.raises(OutputError, match=r"recipe weights was 'int4' and is now 'int8'\): give the same"):
        export_checkpoint(tiny_checkpoint, out, dataclasses.replace(resume, weights="int8"))
    export_checkpoint(tiny_checkpoint, out, resume, on_progress=seen.append)
    assert list(dict.fromkeys(progress.stage for progress in seen)) == ["trace", "verify", "weights", "finish"]
    assert all(progress.resumed_bytes == progress.total_bytes for progress in seen if progress.stage == "weights")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    expected = export_tiny(INT4)
    assert {path.name: file_sha256(path) for path in out.iterdir()} == {
        path.name: file_sha256(path) for path in expected.folder.iterdir()
    }


def test_the_weights_of_a_choice_are_exported_and_an_export_of_others_is_not_continued(tmp_path: Path) -> None:
    layers = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    checkpoint = write_tiny(tmp_path / "checkpoint", num_shards=2, vision=False, text_overrides=layers)
    newer = write_tiny(tmp_path / "newer", seed=1, vision=False, text_overrides=layers)
    (newer / "model.safetensors").rename(checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"choose with --weights-file model\.safetensors or"):
        export_checkpoint(checkpoint, tmp_path / "artifact", INT4)
    notes: list[str] = []
    chosen = dataclasses.replace(INT4, weights_file="model.safetensors")
    out = tmp_path / "artifact"
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(checkpoint, out, chosen, on_progress=_interrupt_at("finish"), on_note=notes.append)
    assert [note[:10] for note in notes] == ["not read: "]
    other = dataclasses.replace(INT4, weights_file="model.safetensors.index.json", resume=True)
    with pytest.raises(OutputError, match=r"files model.* was .*give the same checkpoint and options"):
        export_checkpoint(checkpoint, out, other)
    export_checkpoint(checkpoint, out, dataclasses.replace(chosen, resume=True))
    (checkpoint / "model.safetensors").rename(newer / "model.safetensors")
    export_checkpoint(newer, tmp_path / "alone", INT4)
    alone = {path.name: file_sha256(path) for path in (tmp_path / "alone").glob("weights-*")}
    assert alone == {path.name: file_sha256(path) for path in out.glob("weights-*")} != {}


def test_an_existing_folder_is_not_touched(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    for options in (FP32, ExportOptions(weights="fp32", overwrite=True)):
        with pytest.raises(OutputError, match="precious exists"):
            export_checkpoint(tiny_checkpoint, tmp_path / "precious", options)
    assert (tmp_path / "precious" / "file").read_text() == "x"


def test_overwriting_replaces_an_artifact_only_once_the_new_one_is_whole(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    export_checkpoint(tiny_checkpoint, out, FP32)
    overwrite = ExportOptions(weights="int4", overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(tiny_checkpoint, out, overwrite, on_progress=_interrupt_at("finish"))
    assert open_artifact(out, verify=True).manifest.quantization.weights == "fp32"
    export_checkpoint(tiny_checkpoint, out, overwrite)
    assert open_artifact(out, verify=True).manifest.quantization.weights == "int4"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_place_that_cannot_be_written_is_an_output_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        export_checkpoint(tiny_checkpoint, tmp_path / "file" / "artifact", FP32)
    with pytest.raises(OutputError, match="cannot be used"):
        export_checkpoint(tiny_checkpoint, tmp_path / ("x" * 300), FP32)


def test_config_json_is_parsed_once(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Path] = []
    real = strict_json.read_object

    def counting(path: Path, max_bytes: int) -> dict[str, Any]:
        if path.name == "config.json":
            parsed.append(path)
        return real(path, max_bytes)

    monkeypatch.setattr(config_module, "read_object", counting)
    export_checkpoint(tiny_checkpoint, tmp_path / "artifact", INT4)
    assert parsed == [tiny_checkpoint / "config.json"]


@pytest.mark.parametrize("missing", ["preadv", "O_NOFOLLOW"])
def test_a_system_that_cannot_export_is_one_line(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(os, missing)
        with pytest.raises(ExportError, match="POSIX") as refusal:
            export_checkpoint(tiny_checkpoint, tmp_path / "artifact", INT4)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []
