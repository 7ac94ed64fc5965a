"""`qwonnx export`: its options, its messages after an interruption, and its progress bar."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from qwonnx.export.weight_files.progress import ExportProgress
from qwonnx.export.weight_files.unfinished import incomplete_folder
from qwonnx.handlers.cli.export_progress import (
    ExportBar,
    ExportLines,
    export_progress,
    note_that_the_artifact_is_whole,
    note_what_is_kept,
)
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.runtime.errors import TemplateError
from tests.handlers.cli.commands import error_line, qwonnx


@pytest.mark.parametrize(
    ("memory", "message"),
    [("much", "--memory is 'much', which is not a size"), ("1MB", "1.00 MB is less than the 64.0 MB")],
)
def test_a_budget_that_cannot_be_is_one_line(tmp_path: Path, memory: str, message: str) -> None:
    assert message in error_line(qwonnx("export", tmp_path / "checkpoint", tmp_path / "out", "--memory", memory))


def test_starting_over_is_said_and_touches_nothing_before_the_checkpoint_is_checked(tmp_path: Path) -> None:
    folder = incomplete_folder(tmp_path / "out")
    folder.mkdir()
    (folder / "export.journal").write_text("{}")
    result = qwonnx("export", tmp_path / "checkpoint", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.startswith(f"qwonnx: starting over; use --resume to continue from {folder}\nqwonnx: error: ")
    assert (folder / "export.journal").read_text() == "{}"


@pytest.mark.parametrize("kept", [True, False])
def test_ctrl_c_says_what_is_kept_if_anything_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: bool
) -> None:
    out = tmp_path / "out"
    if kept:
        incomplete_folder(out).mkdir()
        (incomplete_folder(out) / "decoder.codes").write_bytes(bytes(1_500_000))
    with pytest.raises(KeyboardInterrupt), note_what_is_kept(out):
        raise KeyboardInterrupt
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    if kept:
        assert said == (
            f"qwonnx: interrupted; 1.50 MB are kept in {incomplete_folder(out)}: run the same command with"
            " --resume to go on\n"
        )
    else:
        assert said == (
            f"qwonnx: interrupted; nothing is kept and {out} is as it was: run the same command to start again\n"
        )


@pytest.mark.parametrize("fault", [TemplateError("nothing is there"), CommandError("nothing is there")])
def test_when_a_prompt_cannot_be_baked_the_artifact_is_said_to_be_whole(tmp_path: Path, fault: Exception) -> None:
    out = tmp_path / "out"
    with pytest.raises(CommandError) as refusal, note_that_the_artifact_is_whole(out):
        raise fault
    assert str(refusal.value) == f"nothing is there; {out} is complete without it: continue with qwonnx bake"


def test_a_line_says_stage_bytes_rate_and_time_left() -> None:
    now = 0.0
    lines = ExportLines(lambda: now)
    now = 31.0
    assert lines.line() == "reading the checkpoint, 31 s since the start"
    lines.show(ExportProgress("trace", 0, 0))
    now = 62.0
    assert lines.line() == "tracing the model, 62 s since the start"
    lines.show(ExportProgress("calibrate", 0, 40))
    assert lines.line() == "calibrating: 0 of 40 layers"
    now = 102.0
    lines.show(ExportProgress("calibrate", 10, 40))
    assert lines.line() == "calibrating: 10 of 40 layers, 120 s left" or lines.line().endswith(", 2 min left")
    lines.show(ExportProgress("weights", 5 * 10**9, 20 * 10**9, resumed_bytes=5 * 10**9))
    now = 132.0
    lines.show(ExportProgress("weights", 8 * 10**9, 20 * 10**9, resumed_bytes=5 * 10**9, peak_bytes=7))
    assert lines.line() == "writing weights: 8.00 GB of 20.0 GB, 100 MB/s, 2 min left"
    assert lines.peak_bytes == 7


def test_without_a_terminal_lines_are_written_even_if_nothing_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    with export_progress(Console(stderr=True, force_terminal=False), seconds=0.02) as shown:
        time.sleep(0.1)
        shown.show(ExportProgress("weights", 10**9, 2 * 10**9))
        time.sleep(0.1)
    written = capfd.readouterr().err.splitlines()
    assert written[0] == "qwonnx: reading the checkpoint, 0 s since the start"
    assert written[-1].startswith("qwonnx: writing weights: 1.00 GB of 2.00 GB, ")
    time.sleep(0.05)
    assert capfd.readouterr().err == ""


def test_a_short_export_writes_no_line(capfd: pytest.CaptureFixture[str]) -> None:
    with export_progress(Console(stderr=True, force_terminal=False)) as shown:
        shown.show(ExportProgress("weights", 10**9, 2 * 10**9))
    assert capfd.readouterr().err == ""


def test_the_bar_counts_resumed_bytes_as_done_and_not_as_speed() -> None:
    now = 0.0
    with Progress(console=Console(quiet=True), get_time=lambda: now, auto_refresh=False) as progress:
        bar = ExportBar(progress)
        (task,) = progress.tasks
        bar.show(ExportProgress("trace", 0, 0))
        for second in range(4):
            now += 1.0
            bar.show(ExportProgress("verify", second * 10**9, 3 * 10**9))
        assert task.finished
        for second in range(6):
            now += 1.0
            done = 700 * 10**6 + second * 10**6
            bar.show(ExportProgress("weights", done, 710 * 10**6, resumed_bytes=700 * 10**6, peak_bytes=5 + second))
            assert task.completed == done
            assert task.total == 710 * 10**6
        assert task.speed == 10**6
        assert task.time_remaining == 5
        assert task.percentage > 99
        bar.show(ExportProgress("finish", 720 * 10**6, 720 * 10**6))
        assert task.percentage == 100
        assert bar.peak_bytes == 10


@pytest.mark.parametrize(("content", "words"), [(b"\xff\xfe", "not UTF-8"), (None, "cannot read")])
def test_an_odd_calibration_file_is_named(
    tiny_checkpoint: Path, tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    line = error_line(qwonnx("export", tiny_checkpoint, tmp_path / "artifact", "--calibration", path))
    assert "text.txt" in line
    assert words in line
    assert not (tmp_path / "artifact").exists()
