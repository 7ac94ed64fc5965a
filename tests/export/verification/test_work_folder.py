"""Results of a verification's steps survive a kill, and only whole ones are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwonnx.export.errors import OutputError
from qwonnx.export.verification.work_folder import opened_work_folder, work_folder_of

pytestmark = pytest.mark.fast

FINGERPRINT: dict[str, Any] = {"artifact": "a", "files": [1, 2]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which two steps are done."""
    path = work_folder_of(tmp_path / "artifact")
    with opened_work_folder(path, FINGERPRINT) as work:
        assert not work.resumed
        work.finish("first", {"n": 1}, {"hidden-0": np.arange(6.0)})
        filled = work.mapped("logits", (2, 3))
        filled[:] = 5
        work.finish_mapped("second", [True], ["logits"])
    assert path.name == ".artifact.verify"
    return path


def done(folder: Path, fingerprint: dict[str, Any] = FINGERPRINT) -> list[str]:
    with opened_work_folder(folder, fingerprint) as work:
        return sorted(work.done)


def test_what_is_done_is_read_again(folder: Path) -> None:
    with opened_work_folder(folder, FINGERPRINT) as work:
        assert work.resumed
        assert (work.done["first"], work.done["second"]) == ({"n": 1}, [True])
        assert work.array("hidden-0").tolist() == list(range(6))
        assert work.array("logits").tolist() == [[5, 5, 5], [5, 5, 5]]
        work.remove()
    assert not folder.exists()


def test_an_array_takes_the_place_of_another(folder: Path) -> None:
    with opened_work_folder(folder, FINGERPRINT) as work:
        work.finish("third", 3, {"hidden-1": np.zeros(2)}, replaces="hidden-0")
    assert not (folder / "hidden-0.npy").exists()
    assert done(folder) == ["files", "first", "second", "third"]


def test_other_models_or_damaged_files_start_over(folder: Path) -> None:
    saved = (folder / "record.json").read_bytes()
    assert done(folder, {"artifact": "b"}) == []
    (folder / "record.json").write_bytes(saved)  # and arrays are missing
    assert done(folder) == []


@pytest.mark.parametrize("name", ["hidden-0.npy", "logits.npy", "record.json"])
def test_a_file_that_was_cut_short_is_not_used(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    assert done(folder) == []


def test_a_folder_with_other_files_and_one_in_use_are_refused(folder: Path, tmp_path: Path) -> None:
    with (
        opened_work_folder(folder, FINGERPRINT),
        pytest.raises(OutputError, match="another verification works in"),
        opened_work_folder(folder, FINGERPRINT),
    ):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    with (
        pytest.raises(OutputError, match=r"has other files, such as letter\.txt"),
        opened_work_folder(tmp_path / "mine", FINGERPRINT),
    ):
        pass
    with (
        pytest.raises(OutputError, match="give --work a folder elsewhere"),
        opened_work_folder(tmp_path / "mine" / "letter.txt" / "x", FINGERPRINT),
    ):
        pass
