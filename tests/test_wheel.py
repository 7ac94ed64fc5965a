"""The built wheel: every sub-package and nothing else, and it runs where the repository is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # From a copy, so that setuptools' build folders neither litter the repository nor carry stale files in.
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in ("export", "runtime", "handlers"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {
        f"qwonnx/{path.relative_to(ROOT).as_posix()}"
        for folder in ("export", "runtime", "handlers")
        for path in (ROOT / folder).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed" or path.parent.name == "recipes"
    }
    assert packed == sources


def test_the_version_is_the_projects(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert wheel.name.startswith(f"qwonnx-{project['version']}-py3-none-any")


def test_the_wheel_runs_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    program = (
        "import qwonnx.runtime, qwonnx.handlers.app, qwonnx.export, sys;"
        "from qwonnx.handlers.cli.main import main;"
        "print(qwonnx.runtime.__file__); sys.argv[1:] = ['--version']; main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    location, version = run.stdout.strip().splitlines()
    assert Path(location).is_relative_to(site), "the wheel's modules must be tested, not the repository's"
    assert version == f"qwonnx {wheel.name.split('-')[1]}"
