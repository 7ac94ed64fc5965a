"""`make release-check` of the last commit, with the Pythons of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.shipping.image_root import ROOT

pytestmark = pytest.mark.soak


def test_the_last_commit_could_be_released(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infra.shipping.release_check", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    said = json.loads(run.stdout.splitlines()[-1])
    assert said["passed"]
    assert {each["state"] for each in said["pythons"]} <= {"answers", "wheels exist"}
    assert any(each["exported"] for each in said["pythons"])
    stem = f"qwonnx-{said['version']}"
    assert {path.name for path in tmp_path.iterdir()} == {
        said["wheel"],
        f"{stem}.tar.gz",
        f"{stem}.cdx.json",
        f"{stem}.NOTICE",
    }
