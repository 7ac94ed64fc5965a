"""The profile counts every step once, and its kernels with the step that they ran in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.bench import step_profile
from qwonnx.export import ExportOptions, export_checkpoint


def test_kernels_are_counted_with_the_step_that_they_ran_in() -> None:
    def event(category: str, name: str, start: int, duration: int, op: str = "") -> dict[str, object]:
        return {"cat": category, "name": name, "ts": start, "dur": duration, "args": {"op_name": op}}

    steps = step_profile.steps(
        [
            event("Session", "model_loading_uri", 0, 5),
            event("Session", "model_run", 10, 50),
            event("Node", "a_kernel_time", 12, 20, "QMoE"),
            event("Node", "b_kernel_time", 33, 10, "QMoE"),
            event("Node", "a_fence_before", 11, 1, "QMoE"),
            event("Session", "model_run", 70, 20),
            event("Node", "a_kernel_time", 72, 15, "Mul"),
        ]
    )
    assert steps == [step_profile.Step(50, {"QMoE": 30.0}), step_profile.Step(20, {"Mul": 15.0})]


def test_an_artifact_is_profiled(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_checkpoint(tiny_checkpoint, tmp_path / "artifact", ExportOptions(weights="int4"))
    rounds = ["--prompt-tokens", "7", "--decode-tokens", "3", "--rounds", "2"]
    step_profile.main([str(tmp_path / "artifact"), *rounds])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("prompt", "decode"):
        assert 0 < report[name]["matrix_products_ms"] < report[name]["step_ms"]
