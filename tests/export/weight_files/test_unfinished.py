"""The folder of an unfinished export: only one export writes there, the right files stay, and it is renamed last."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qwonnx.export.errors import CheckpointError, ExportError, OutputError, RecipeError, TensorFormatError
from qwonnx.export.weight_files.journal import JOURNAL_NAME, Mark, Noted
from qwonnx.export.weight_files.unfinished import UnfinishedExport, incomplete_folder, unfinished_export

pytestmark = pytest.mark.fast

FINGERPRINT = {"weights": "int4"}
WEIGHTS = "weights-00001.bin"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "place" / "artifact"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _write(unfinished: UnfinishedExport, *, marked: bool = True) -> None:
    """Write as the weight stage does."""
    (unfinished.folder / WEIGHTS).write_bytes(b"abc")
    if marked:
        unfinished.journal.add_mark(Mark(1, (Noted(3, "a" * 64), Noted(0, "b" * 64))))


def _interrupt(
    out: Path, error: BaseException, *, marked: bool = True, begun: bool = True, resume: bool = False
) -> BaseException:
    """An export that ends early; returns the error that the caller sees."""

    def export() -> None:
        with unfinished_export(out, FINGERPRINT, resume=resume, overwrite=False) as unfinished:
            if begun:
                unfinished.begin()
                _write(unfinished, marked=marked)
            raise error

    with pytest.raises(type(error) if not isinstance(error, OSError) else OutputError) as caught:
        export()
    assert not out.exists()
    return caught.value


def test_it_takes_its_name_at_the_end_and_leaves_no_journal(out: Path) -> None:
    with unfinished_export(out, FINGERPRINT, resume=False, overwrite=False) as unfinished:
        assert unfinished.folder == incomplete_folder(out) == out.parent / ".artifact.incomplete"
        unfinished.begin()
        _write(unfinished)
        assert not out.exists()
    assert _names(out.parent) == ["artifact"]
    assert _names(out) == [WEIGHTS]
    assert out.stat().st_mode & 0o055 == 0o055


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()])
def test_an_interruption_keeps_what_is_marked_and_nothing_less(out: Path, error: BaseException) -> None:
    assert _interrupt(out, error) is error
    assert _names(incomplete_folder(out)) == [JOURNAL_NAME, WEIGHTS]
    _interrupt(out, error, marked=False)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    "error", [OutputError("the disk is full: free some"), CheckpointError("cannot be read: check the file")]
)
def test_what_time_or_the_user_can_mend_keeps_the_folder_and_says_how_to_go_on(out: Path, error: ExportError) -> None:
    seen = _interrupt(out, error)
    assert type(seen) is type(error)
    assert str(seen) == f"{error}; what is written is kept: go on with --resume"
    assert str(_interrupt(out, OSError(errno.ENOSPC, "No space left"))).endswith("--resume")
    assert incomplete_folder(out).exists()


def test_a_checkpoint_at_fault_leaves_nothing(out: Path) -> None:
    error = TensorFormatError("not finite: download again")
    assert _interrupt(out, error) is error
    assert list(out.parent.iterdir()) == []


def test_nothing_is_dropped_before_a_new_export_begins_to_write(out: Path) -> None:
    _interrupt(out, KeyboardInterrupt())
    error = RecipeError("a rule: correct it")
    assert _interrupt(out, error, begun=False) is error
    assert _names(incomplete_folder(out)) == [JOURNAL_NAME, WEIGHTS]
    with unfinished_export(out, FINGERPRINT, resume=False, overwrite=False) as unfinished:
        unfinished.begin()
        assert _names(unfinished.folder) == [JOURNAL_NAME]
        assert not unfinished.journal.has_marks


def test_resuming_finds_weights_and_marks_and_drops_all_else(out: Path) -> None:
    _interrupt(out, KeyboardInterrupt())
    folder = incomplete_folder(out)
    (folder / "decoder.onnx").write_bytes(b"cut short")
    (folder / "folder").mkdir()
    with unfinished_export(out, FINGERPRINT, resume=True, overwrite=False) as unfinished:
        unfinished.begin()
        assert _names(folder) == [JOURNAL_NAME, WEIGHTS]
        assert len(unfinished.journal.marks(1)) == 1
    assert _names(out) == [WEIGHTS]


def test_resuming_without_anything_to_resume_starts_from_nothing(out: Path) -> None:
    with unfinished_export(out, FINGERPRINT, resume=True, overwrite=False) as unfinished:
        unfinished.begin()
        assert unfinished.journal.fingerprint == FINGERPRINT
        _write(unfinished)
    assert _names(out) == [WEIGHTS]


def test_another_export_cannot_be_resumed_and_is_not_touched(out: Path) -> None:
    _interrupt(out, KeyboardInterrupt())
    with (
        pytest.raises(OutputError, match=r"was begun by another export \(weights was 'int4' and is now 'int8'\): give"),
        unfinished_export(out, {"weights": "int8"}, resume=True, overwrite=False),
    ):
        raise AssertionError
    assert _names(incomplete_folder(out)) == [JOURNAL_NAME, WEIGHTS]


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_export_is_refused_while_the_first_runs(out: Path, resume: bool) -> None:
    with unfinished_export(out, FINGERPRINT, resume=False, overwrite=False) as unfinished:
        unfinished.begin()
        _write(unfinished)
        with (
            pytest.raises(OutputError, match=f"another export is writing {out}: wait for it"),
            unfinished_export(out, FINGERPRINT, resume=resume, overwrite=False),
        ):
            raise AssertionError
    assert _names(out) == [WEIGHTS]


def test_a_lock_on_a_folder_that_was_renamed_meanwhile_is_not_taken_for_the_new_ones(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock: Callable[[int, int], None] = fcntl.flock

    def finish_first(file: int, operation: int) -> None:
        """The other export ends between opening the journal and locking it."""
        monkeypatch.setattr(fcntl, "flock", lock)
        incomplete_folder(out).rename(out)
        lock(file, operation)

    _interrupt(out, KeyboardInterrupt())
    monkeypatch.setattr(fcntl, "flock", finish_first)
    with unfinished_export(out, FINGERPRINT, resume=True, overwrite=True) as unfinished:
        unfinished.begin()
        assert _names(unfinished.folder) == [JOURNAL_NAME]
        assert _names(out) == [JOURNAL_NAME, WEIGHTS]


def test_a_file_system_without_locks_is_written_all_the_same(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with unfinished_export(out, FINGERPRINT, resume=False, overwrite=False) as unfinished:
        unfinished.begin()
        _write(unfinished)
    assert _names(out) == [WEIGHTS]


def test_a_folder_of_someone_else_in_that_place_is_not_touched(out: Path) -> None:
    folder = incomplete_folder(out)
    folder.mkdir(parents=True)
    (folder / "precious").write_text("x")
    with (
        pytest.raises(OutputError, match=r"\.artifact\.incomplete exists and is not an unfinished export: remove it"),
        unfinished_export(out, FINGERPRINT, resume=False, overwrite=False),
    ):
        raise AssertionError
    assert _names(folder) == ["precious"]


def test_overwriting_replaces_the_old_artifact_only_at_the_end(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "old").write_text("x")
    with unfinished_export(out, FINGERPRINT, resume=False, overwrite=True) as unfinished:
        unfinished.begin()
        _write(unfinished)
        assert _names(out) == ["old"]
    assert _names(out) == [WEIGHTS]
    assert _names(out.parent) == ["artifact"]


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(OutputError, match=r"cannot write .*artifact \(File exists\): free some space or choose"),
        unfinished_export(tmp_path / "file" / "artifact", FINGERPRINT, resume=False, overwrite=False),
    ):
        raise AssertionError
