"""A check reports what an export uses, without torch. Its verdicts are tested with the layouts (test_layouts.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwonnx.export.errors import CheckpointError
from qwonnx.export.planning.check import check_checkpoint
from tests.checkpoints import write_tiny
from tests.checkpoints.quantized_formats import write_fp8, write_gptq
from tests.export.adapters.trained import edit_tensors, load, train, write_base

ROOT = Path(__file__).resolve().parents[3]
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from qwonnx.handlers.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one checkpoint of each format."""
    root = tmp_path_factory.mktemp("checkpoints")
    unfused = write_base(root / "unfused", fused_experts=False)
    write_fp8(unfused, root / "fp8", root / "fp8-exact")
    write_gptq(unfused, root / "gptq", root / "gptq-exact", group_size=16)
    write_tiny(root / "nested", mtp=True)
    tied = write_base(root / "tied", tie_word_embeddings=True, dtype="BF16")
    tensors = load_file(tied / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tied / "model.safetensors")
    train(load(unfused), root / "adapter", r=2, target_modules=["q_proj"])
    for name in ("training_args.bin", "README.md"):
        (tied / name).write_bytes(b"x")
    return root


def checked(*arguments: object) -> tuple[int, dict[str, Any]]:
    """The exit status and the report of a process without torch."""
    command = [sys.executable, "-c", WITHOUT_TORCH, "check", *map(str, arguments), "--json"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode in (0, 1), run.stderr
    return run.returncode, json.loads(run.stdout)


def test_nothing_of_torch_is_needed(checkpoints: Path) -> None:
    status, report = checked(checkpoints / "tied")
    assert (status, report["refusal"], report["unread"]) == (0, None, ["training_args.bin"])
    assert [part["name"] for part in report["skipped"]] == ["copy of the tied embedding"]
    status, report = checked(checkpoints / "gptq", "--adapter", checkpoints / "adapter")
    assert (status, report["refusal"]) == (0, None)
    assert report["model"]["num_kept_codes"] == 4
    assert report["adapters"][0]["name"] == "adapter"


def test_what_is_found_is_counted(checkpoints: Path) -> None:
    report = check_checkpoint(str(checkpoints / "nested"))
    assert report.model is not None
    assert (report.model.num_layers, report.model.num_experts, report.model.dtype) == (4, 16, "bfloat16")
    skipped = sum(part.num_tensors for part in report.skipped)
    assert report.model.num_tensors == len(load_file(checkpoints / "nested" / "model.safetensors")) - skipped
    assert check_checkpoint(str(checkpoints / "fp8")).model is not None


def test_a_tied_copy_that_differs_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    tied = write_base(tmp_path / "tied", tie_word_embeddings=True)
    tensors = load_file(tied / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    for stored, differs in ((head.bfloat16(), True), (head, False), (head + torch.eye(*head.shape), True)):
        save_file({**tensors, "lm_head.weight": stored}, tied / "model.safetensors")
        assert ("lm_head.weight differs from" in (check_checkpoint(str(tied)).refusal or "")) == differs


def test_codes_that_an_adapter_changes_are_a_refusal_without_the_option(checkpoints: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"target_parameters": ["layers.0.mlp.experts.down_proj"]}
    adapter = train(load(checkpoints / "unfused"), tmp_path / "tuned", r=2, target_modules=["q_proj"], **fields).folder
    gptq = str(checkpoints / "gptq")
    assert "--requantize" in (check_checkpoint(gptq, adapters=[adapter]).refusal or "")
    allowed = check_checkpoint(gptq, adapters=[adapter], requantize=True)
    assert allowed.refusal is None
    assert any(note.startswith("requantised: 6 weights") for note in allowed.notes)


def test_an_adapter_that_is_not_used_whole_is_a_refusal(checkpoints: Path, tmp_path: Path) -> None:
    adapter = train(load(checkpoints / "unfused"), tmp_path / "tuned", r=2, target_modules=["q_proj"]).folder
    edit_tensors(adapter, lambda state: {**state, "base_model.model.unknown": torch.ones(2)})
    assert "'base_model.model.unknown' changes no weight" in (
        check_checkpoint(str(checkpoints / "unfused"), adapters=[adapter]).refusal or ""
    )


def test_what_is_no_checkpoint_is_an_error_and_not_a_refusal(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist: give a checkpoint's folder"):
        check_checkpoint(str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="is a file: give the checkpoint's folder"):
        check_checkpoint(str(checkpoints / "tied" / "config.json"))
