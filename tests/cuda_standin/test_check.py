"""The script for a real device, on the stand-in: every check runs, on the bundle that this clone makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.gpu.on_device.case import load_cases

# Of an operator's float16 twin against its function body, relative: half a unit in the last place is 5e-4.
LARGEST_EMULATED = 2e-3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the CPU's ONNX Runtime, as on any machine: its kernels know the twin's operators."""
    folder = tmp_path_factory.mktemp("check") / "bundle"
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_LIBRARY_PATH", "PYTHONPATH")}
    command = [sys.executable, "-m", "infra.gpu.bundle", str(folder), "--no-packages", "--small"]
    subprocess.run(command, env=environment, check=True)
    return folder


def test_every_check_of_the_bundle_passes_with_values_unchecked(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(bundle / "check.py"), str(bundle), "--values", "unchecked"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    *lines, last = done.stdout.splitlines()
    assert not [line for line in lines if not line.startswith("PASS  ")]
    assert done.returncode == 0
    report = json.loads(last)
    groups = {name.split("/")[0] for name in report["findings"]}
    assert groups == {"bundle", "device", "operators", "miniature", "geometry"}
    assert report["FAIL"] == report["SKIP"] == 0
    assert report["findings"]["geometry/35B-A3B/decode 1"]["figures"]["share_of_copy_rate"] > 0
    cases = list(load_cases(bundle / "unpacked" / "operators" / "miniature-float16"))
    kernels = {kernel for case in cases for kernel in case.graph.removesuffix(".onnx").split("-")}
    assert kernels >= {"MatMulNBits", "CausalConvWithState", "GatedDeltaNet", "GroupQueryAttention", "QMoE"}
    errors = {case.name: max(case.emulated.values()) for case in cases}
    assert {name for name, error in errors.items() if error > LARGEST_EMULATED} == set()
