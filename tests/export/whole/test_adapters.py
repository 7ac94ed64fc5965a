"""Exports with adapters, compared with peft on the same base."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.adapters.adapted_checkpoint import resolve_adapted
from qwonnx.export.errors import AdapterError, VerificationError
from qwonnx.export.evaluation.reference_adapters import merge_adapters
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.export.targets.register import choose_target
from qwonnx.export.verification.verdict import Verdict
from qwonnx.export.verification.verification import verify_artifact
from qwonnx.export.weight_files.fingerprint import difference, export_fingerprint
from qwonnx.runtime.artifact.folder import file_sha256, open_artifact
from tests.checkpoints.quantized_formats import write_gptq
from tests.export.adapters.trained import LINEAR, PARAMETERS, edit_tensors, load, train, write_base
from tests.export.verified import verified

pytestmark = pytest.mark.usefixtures("traced_once")

EVERYTHING: dict[str, Any] = {
    "r": 5,
    "lora_alpha": 7,
    "target_modules": [*LINEAR, "embed_tokens", "lm_head"],
    "target_parameters": PARAMETERS,
    "modules_to_save": ["input_layernorm"],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "base", dtype="BF16")


@pytest.fixture(scope="module")
def model(base: Path) -> nn.Module:
    return load(base)


@pytest.fixture(scope="module")
def adapter(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(model, tmp_path_factory.mktemp("adapter") / "tuned", **EVERYTHING).folder


def test_an_artifact_with_an_adapter_equals_pefts_model(
    base: Path, model: nn.Module, adapter: Path, tmp_path: Path
) -> None:
    dora = train(model, tmp_path / "dora", seed=1, r=3, use_dora=True, target_modules=["o_proj", "out_proj"]).folder
    options = ExportOptions(weights="fp32", adapters=(adapter, dora))
    manifest = export_checkpoint(base, tmp_path / "artifact", options)
    assert [(facts.name, facts.kind, facts.rank, facts.scaling) for facts in manifest.adapters] == [
        ("tuned", "lora", "5", "1.4"),
        ("dora", "dora", "3", "2.66667"),
    ]
    assert manifest.adapters[0].sha256 == file_sha256(adapter / "adapter_model.safetensors")
    report = verified(tmp_path / "artifact", base, (adapter, dora))
    assert report.mean_kl < 1e-9
    assert report.max_logit_difference < 1e-3
    assert verify_artifact(tmp_path / "artifact", base).decision.verdict is Verdict.DIFFERENT


def test_the_bytes_depend_neither_on_memory_nor_on_threads(base: Path, adapter: Path, tmp_path: Path) -> None:
    found = []
    for name, threads, memory in (("small", 1, 64_000_000), ("large", 2, 2_000_000_000)):
        options = ExportOptions(num_threads=threads, memory_bytes=memory, adapters=(adapter,))
        found.append(export_checkpoint(base, tmp_path / name, options).files)
    assert found[0] == found[1]


def test_an_interrupted_export_continues_with_the_same_adapter_only(base: Path, adapter: Path, tmp_path: Path) -> None:
    def fingerprint() -> dict[str, Any]:
        adapted = resolve_adapted(str(base), None, None, [adapter])
        resolved, choice = adapted.resolved, choose_target("cpu", None, None).described()
        recipe = Recipe.preset("int4")
        arguments = (resolved.tensors, resolved.source, resolved.config, recipe, choice, None)
        return export_fingerprint(*arguments, adapted.adapters)

    begun = fingerprint()
    assert difference(begun, fingerprint()) is None
    content = (adapter / "adapter_config.json").read_text()
    (adapter / "adapter_config.json").write_text(json.dumps(json.loads(content) | {"lora_alpha": 8}))
    try:
        assert "adapters was" in (difference(begun, fingerprint()) or "")
    finally:
        (adapter / "adapter_config.json").write_text(content)
    assert difference(begun, fingerprint()) is None


def test_codes_are_quantised_again_only_where_that_is_asked_for(tmp_path: Path) -> None:
    base = write_base(tmp_path / "float", fused_experts=False)
    write_gptq(base, tmp_path / "gptq", tmp_path / "exact", group_size=16)
    fields: dict[str, Any] = {"target_modules": ["q_proj"], "target_parameters": ["layers.1.mlp.experts.down_proj"]}
    adapter = train(load(tmp_path / "exact"), tmp_path / "tuned", r=2, **fields).folder
    options = ExportOptions(weights="int8", activations="float32", adapters=(adapter,))
    with pytest.raises(AdapterError, match=r"adapters change 6 weights .* as codes .*--requantize"):
        export_checkpoint(tmp_path / "gptq", tmp_path / "artifact", options)
    notes: list[str] = []
    allowed = ExportOptions(weights="int8", activations="float32", adapters=(adapter,), requantize=True)
    export_checkpoint(tmp_path / "gptq", tmp_path / "artifact", allowed, on_note=notes.append)
    assert any(note.startswith("requantised: 6 weights that adapters change") for note in notes)
    report = verified(tmp_path / "artifact", tmp_path / "exact", (adapter,))
    assert report.mean_kl < 1e-2
    groups = open_artifact(tmp_path / "artifact").manifest.quantization.groups
    experts = {group.storage: group.num_tensors for group in groups if group.kind == "experts"}
    assert experts == {"int4": 3, "int8": 1}


def test_a_tied_head_parts_in_the_artifact(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tie_word_embeddings=True, architecture="Qwen3_5ForCausalLM")
    adapter = train(load(base), tmp_path / "tuned", r=2, target_modules=["lm_head"]).folder
    manifest = export_checkpoint(base, tmp_path / "artifact", ExportOptions(weights="fp32", adapters=(adapter,)))
    assert {"embedding", "lm_head"} <= {group.kind for group in manifest.quantization.groups}
    report = verified(tmp_path / "artifact", base, (adapter,))
    assert report.mean_kl < 1e-9


def test_an_adapter_of_other_modules_is_an_error_here_and_for_peft(
    base: Path, model: nn.Module, tmp_path: Path
) -> None:
    adapter = train(model, tmp_path / "tuned", r=2, target_modules=["q_proj"]).folder
    export_checkpoint(base, tmp_path / "artifact", ExportOptions(weights="fp32", adapters=(adapter,)))
    edit_tensors(adapter, lambda state: {name.replace("layers.1", "layers.0"): x for name, x in state.items()})
    with pytest.raises(AdapterError, match="changes no weight of the base"):
        verified(tmp_path / "artifact", base, (adapter,))
    with pytest.raises(VerificationError, match="peft does not load"):
        merge_adapters(copy.deepcopy(model), (adapter,))
