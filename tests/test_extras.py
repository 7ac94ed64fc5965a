"""Every extra of pyproject.toml can be installed: pip finds versions that fit together."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


# pip reads hundreds of pages of an index for these: `make soak` asks it.
LARGE = ("gpu", "dev", "ray", "export", "s3", "gcs")


@pytest.mark.parametrize(
    "extra", [pytest.param(extra, marks=pytest.mark.soak if extra in LARGE else ()) for extra in EXTRAS]
)
def test_pip_finds_versions_for(extra: str) -> None:
    """What is installed already counts, so only missing packages are looked up."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-build-isolation", "--disable-pip-version-check"]
    command = [*pip, "-c", "infra/constraints.txt", f".[{extra}]"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
