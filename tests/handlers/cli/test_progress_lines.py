"""Progress without a terminal: lines at intervals, and none after the end."""

from __future__ import annotations

import io
import threading
import time

import pytest
from rich.console import Console

from qwonnx.handlers.cli.progress_lines import lines_every, step_progress

pytestmark = pytest.mark.fast


def test_lines_come_while_the_work_reports_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    with lines_every(0.01, lambda: "half done"):
        time.sleep(0.2)
    assert threading.active_count() == before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2
    assert set(lines) == {"qwonnx: half done"}


def test_a_step_is_said_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    with step_progress("loading", Console(file=io.StringIO()), seconds=0.01) as update:
        time.sleep(0.1)
        update("asking")
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "qwonnx: loading, 0 s since the start"
    assert lines[-1] == "qwonnx: asking, 0 s since the start"


def test_a_short_step_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with step_progress("loading", Console(file=io.StringIO())):
        pass
    assert capsys.readouterr().err == ""
