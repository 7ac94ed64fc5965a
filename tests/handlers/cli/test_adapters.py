"""Adapters on the command line: exported with their base, shown, and compared by peft."""

from __future__ import annotations

import json
from pathlib import Path

from tests.export.adapters.trained import load, train, write_base
from tests.handlers.cli.commands import error_line, qwonnx


def test_an_adapter_is_exported_with_its_base_shown_and_verified(tmp_path: Path) -> None:
    base, out = write_base(tmp_path / "base", dtype="BF16"), tmp_path / "out"
    adapter = train(load(base), tmp_path / "tuned", r=2, target_modules=["q_proj", "gate_proj"]).folder
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(base)}))

    exported = qwonnx("export", adapter, out, "--weights", "fp32")
    assert exported.returncode == 0, exported.stderr
    assert "note: adapter tuned: LoRA of 3 modules, rank 2, scaling 4\n" in exported.stdout

    shown = qwonnx("inspect", out)
    assert "tuned, LoRA, rank 2, scaling 4, sha256 " in shown.stdout
    (facts,) = json.loads(qwonnx("inspect", out, "--json").stdout)["adapters"]
    assert (facts["name"], facts["kind"], facts["rank"], facts["scaling"]) == ("tuned", "lora", "2", "4")

    report = qwonnx("verify", out, "--against", base, "--adapter", adapter, "--max-kl", "1e-9")
    assert report.returncode == 0, report.stderr


def test_an_adapter_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    adapter = train(load(base), tmp_path / "tuned", r=2, target_modules=["q_proj"]).folder
    other = write_base(tmp_path / "other", text_overrides={"num_attention_heads": 8})
    message = error_line(qwonnx("export", other, tmp_path / "out", "--adapter", adapter))
    assert "lora_B.weight' has the shape [256, 2] where its base and adapter_config.json ask for [512, 2]" in message
    assert not (tmp_path / "out").exists()
