"""What a release check compares and reads: archives that differ are told apart, and wrong metadata is refused."""

from __future__ import annotations

import importlib
import io
import os
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from infra.shipping import release_check
from infra.shipping.distributions import Distributions, ReleaseError, check_metadata, differences
from infra.shipping.interpreters import find_interpreters

pytestmark = pytest.mark.fast

# setuptools has no types, so mypy does not read it.
write_anew = importlib.import_module("infra.source_archive").write_anew

METADATA = """Metadata-Version: 2.4
Name: qwonnx
Version: 1.2.3
Summary: exports and serves
License-Expression: Apache-2.0
Requires-Python: >=3.11
Description-Content-Type: text/markdown

# qwonnx
"""


def _tar(path: Path, files: Mapping[str, str], seconds: int = 0, mode: int = 0o644) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = len(text.encode()), seconds, mode
            member.uname = f"builder-{seconds}"
            packed.addfile(member, io.BytesIO(text.encode()))
    return path


def _made(folder: Path, metadata: str = METADATA, of_sdist: str | None = None, **files: str) -> Distributions:
    wheel = folder / "qwonnx-1.2.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("qwonnx-1.2.3.dist-info/METADATA", metadata)
        packed.writestr("qwonnx-1.2.3.dist-info/licenses/LICENSE", "text")
        for name, text in files.items():
            packed.writestr(f"qwonnx/{name}.py", text)
    sdist = _tar(folder / "qwonnx-1.2.3.tar.gz", {"qwonnx-1.2.3/PKG-INFO": of_sdist or metadata})
    return Distributions(sdist, wheel, wheel)


def test_an_archive_that_is_written_anew_does_not_tell_who_made_it(tmp_path: Path) -> None:
    files = {"p/a.py": "a", "p/b.py": "b"}
    one = _tar(tmp_path / "one.tar.gz", files, 5, 0o664)
    other = _tar(tmp_path / "other.tar.gz", dict(reversed(files.items())), 6, 0o600)
    assert one.read_bytes() != other.read_bytes()
    for path in (one, other):
        write_anew(path, 1_700_000_000)
    assert one.read_bytes() == other.read_bytes()
    with tarfile.open(one) as packed:
        assert [(each.name, each.mtime, each.mode, each.uname) for each in packed.getmembers()] == [
            ("p/a.py", 1_700_000_000, 0o644, ""),
            ("p/b.py", 1_700_000_000, 0o644, ""),
        ]


def test_what_differs_is_named(tmp_path: Path) -> None:
    one = _tar(tmp_path / "one.tar.gz", {"p/a": "1", "p/b": "2", "p/c": "3"})
    other = _tar(tmp_path / "other.tar.gz", {"p/a": "1", "p/b": "x", "p/d": "3"})
    assert differences(one, one) == []
    assert differences(one, other) == ["p/b", "p/c", "p/d"]
    later = _tar(tmp_path / "later.tar.gz", {"p/a": "1", "p/b": "2", "p/c": "3"}, 9)
    assert differences(one, later) == ["the archive itself: times, modes or order of its members"]


def test_right_metadata_gives_the_version(tmp_path: Path) -> None:
    assert check_metadata(_made(tmp_path), "/home/builder") == "1.2.3"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Name: qwonnx\n", "", "'name' is a required field"),
        ("Apache-2.0", "Apache 2", "license"),
        ("text/markdown", "text/plain", "not the README as text/markdown"),
        ("Requires-Python: >=3.11\n", "", "requires-python is missing"),
        ("Version: 1.2.3", "Version: 1.2.4", "names disagree"),
    ],
)
def test_wrong_metadata_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=message):
        check_metadata(_made(tmp_path, METADATA.replace(old, new)), "/home/builder")


def test_files_that_disagree_and_paths_of_a_machine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="PKG-INFO is not the wheel's METADATA"):
        check_metadata(_made(tmp_path, of_sdist=METADATA + "more"), "/home/builder")
    with pytest.raises(ReleaseError, match=r"has a path of this machine in qwonnx/module\.py"):
        check_metadata(_made(tmp_path, module="# /home/builder/x"), "/home/builder")


def _interpreter(path: Path, says: str, status: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {says}\nexit {status}\n")
    path.chmod(0o755)
    return path


def test_interpreters_are_found_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "uv"))
    _interpreter(tmp_path / "bin" / "python3.11", "3.11 3.11.9")
    _interpreter(tmp_path / "bin" / "python3.12", "not set for this shell", 127)  # pyenv's way
    _interpreter(tmp_path / "pyenv" / "versions" / "3.12.1" / "bin" / "python3.12", "3.12 3.12.1")
    _interpreter(tmp_path / "uv" / "cpython-3.13.2-linux" / "bin" / "python3.13", "3.13 3.13.2")
    named = _interpreter(tmp_path / "own", "3.11 3.11.2")
    found = find_interpreters(("3.11", "3.12", "3.13", "3.14"), [named])
    assert {minor: each.version for minor, each in found.items()} == {
        "3.11": "3.11.2",
        "3.12": "3.12.1",
        "3.13": "3.13.2",
    }
    with pytest.raises(SystemExit, match="does not run"):
        find_interpreters((), [tmp_path / "missing"])


def test_for_a_python_that_is_not_here_the_index_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def resolve(requirements: list[str], python: str, machine: str, *flags: str) -> list[str]:
        asked.extend([python, machine, *requirements])
        if python == "3.15":
            raise SystemExit("pip finds no lock:\nERROR: No matching distribution found for torch")
        return requirements

    monkeypatch.setattr(release_check, "resolve", resolve)
    tried = release_check.look_for_wheels("3.14")
    assert (tried.python, tried.state, tried.packages) == ("3.14", "wheels exist", len(asked) - 4)
    assert any(each.startswith("torch") for each in asked)
    assert any(each.startswith("onnxruntime>") for each in asked)
    failed = release_check.look_for_wheels("3.15")
    assert failed.state == "fails"
    assert "torch" in failed.reason
