"""Starts of real servers, seen from outside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qwonnx.handlers.bench.cold_start import OURS, compare, serve_command
from qwonnx.handlers.bench.errors import BenchError
from qwonnx.handlers.bench.start import measure
from qwonnx.handlers.bench.waterfall import picture
from tests.handlers.cli.commands import error_line, qwonnx


def test_phases_of_two_servers_in_turn_become_a_table_and_a_picture(counting_folder: Path) -> None:
    ours = serve_command(counting_folder, ["--max-model-len", "256", "--threads", "1"])
    other = [sys.executable, "-m", "uvicorn", "--factory", "qwonnx.handlers.app:from_environment", "--port", "{port}"]
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("QWONNX_ARTIFACT", str(counting_folder))
        found = compare(
            {OURS: ours, "<uvicorn>": other},
            [counting_folder / "decoder.onnx"],
            runs=1,
            seconds=60,
            evict=True,
            on_start=lambda name, start: seen.append(name),
        )
    assert seen == [OURS, "<uvicorn>"]
    start = found.starts[OURS]
    names = [phase.name for phase in start.phases]
    assert names[0] == "process"
    assert {"imports of the engine", "imports of the server", "session", "files", "warm-up"} <= set(names)
    assert start.ready_s is not None
    assert 0 < start.listening_s.least < start.ready_s.least <= start.first_text_s.least
    assert all(phase.begin <= phase.end <= start.first_text_s.least for phase in start.phases)
    assert start.cpu_s.least > 0.1
    assert 0 < start.anonymous_bytes.least < start.resident_bytes.least
    assert found.first_text_over["<uvicorn>"] > 0
    drawn = ElementTree.fromstring(picture(found))
    texts = ["".join(each.itertext()) for each in drawn.iter() if each.tag.endswith("text")]
    assert any(text.startswith("<uvicorn>: ") for text in texts)
    assert "session" in texts


def test_a_command_that_cannot_answer_is_told_with_its_last_words() -> None:
    with pytest.raises(BenchError, match="ended before it answered: no such model"):
        measure([sys.executable, "-c", "raise SystemExit('no such model')"], seconds=30)
    with pytest.raises(BenchError, match="cannot be run"):
        measure(["/nowhere/server", "{port}"], seconds=30)
    with pytest.raises(BenchError, match=r"no answer within 0\.3 s"):
        measure([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.3)


def test_the_command_prints_json_and_refuses_what_it_cannot_start(counting_folder: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "start.svg"
    options = ("--runs", 1, "--json", "--picture", drawn, "--", "--threads", 1, "--max-model-len", 256)
    shown = qwonnx("bench", "cold-start", counting_folder, *options)
    document = json.loads(shown.stdout)
    assert document["runs"] == 1
    assert document["starts"][OURS]["command"][-1] == "256"
    assert drawn.read_text().startswith("<svg")
    assert "{port}" in error_line(qwonnx("bench", "cold-start", counting_folder, "--against", "llama-server"))
    assert "manifest.json" in error_line(qwonnx("bench", "cold-start", tmp_path))
    refused = error_line(qwonnx("bench", "cold-start", counting_folder, "--runs", 1, "--", "--threads", 0))
    assert "num_threads is 0" in refused
