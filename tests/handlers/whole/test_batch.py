"""`qwonnx batch` in its own process: killed at any moment, stopped, piped, and refused.

BATCH_LINES and BATCH_KILLS make the first test larger.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.handlers.cli.commands import error_line, qwonnx, running
from tests.handlers.serving import MODEL

LINES = int(os.environ.get("BATCH_LINES", "150"))
KILLS = int(os.environ.get("BATCH_KILLS", "2"))
ENGINE = ("--max-num-seqs", 4, "--max-model-len", 512, "--threads", 1)


def line(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Question {number}?"}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 5 + number % 40}
    return {"custom_id": f"id-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def write_lines(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps(line(number)) + "\n" for number in range(count)))
    return path


def texts(path: Path) -> dict[str, str]:
    """The answers by id; each id once."""
    found: dict[str, str] = {}
    for row in map(json.loads, path.read_text().splitlines()):
        assert row["custom_id"] not in found
        found[row["custom_id"]] = row["response"]["body"]["choices"][0]["message"]["content"]
    return found


def test_lines_of_several_apis_are_answered_as_their_apis_do(counting_folder: Path, tmp_path: Path) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
        "/v1/completions": {"prompt": "Hi", "max_tokens": 3},
        "/v1/responses": {"input": "Hi", "instructions": "Count.", "max_output_tokens": 16},
        "/v1/embeddings": {"input": "Hi"},
    }
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        {"custom_id": url, "method": "POST", "url": url, "body": {"model": MODEL, **body}}
        for url, body in bodies.items()
    ]
    asked.write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert qwonnx("batch", counting_folder, asked, out, *ENGINE).returncode == 1
    rows = {row["custom_id"]: row["response"]["body"] for row in map(json.loads, out.read_text().splitlines())}
    assert {url: body["object"] for url, body in rows.items()} == {
        "/v1/chat/completions": "chat.completion",
        "/v1/completions": "text_completion",
        "/v1/responses": "response",
    }
    assert rows["/v1/responses"]["usage"]["output_tokens"] > 0
    assert "invalid_url" in (tmp_path / "out.errors.jsonl").read_text()


def test_a_batch_that_is_killed_again_and_again_answers_every_line_once(counting_folder: Path, tmp_path: Path) -> None:
    asked, whole = write_lines(tmp_path / "in.jsonl", LINES), tmp_path / "whole.jsonl"
    began = time.monotonic()
    assert qwonnx("batch", counting_folder, asked, whole, *ENGINE).returncode == 0
    seconds = time.monotonic() - began
    chance, out = random.Random(17), tmp_path / "out.jsonl"
    killed = 0
    for _ in range(KILLS * 4):
        with running("batch", counting_folder, asked, out, "--resume", *ENGINE) as process:
            try:
                process.wait(0.3 + chance.random() * max(seconds - 0.3, 0.1) * 2 / (KILLS + 1))
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
        if killed == KILLS:
            break
    ended = qwonnx("batch", counting_folder, asked, out, "--resume", *ENGINE)
    assert ended.returncode == 0, ended.stderr
    assert killed == KILLS
    assert texts(out) == texts(whole)
    assert len(texts(out)) == LINES


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_whole_rows_and_the_way_to_go_on(
    counting_folder: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    asked, out = write_lines(tmp_path / "in.jsonl", 3000), tmp_path / "out.jsonl"
    with running("batch", counting_folder, asked, out, *ENGINE) as process:
        while not out.exists() or out.stat().st_size < 2000:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said.count("\n")) == (status, 1), said
    answered = len(texts(out))
    assert f"stopped; {answered} lines have their answer, and --resume asks the others" in said


def test_lines_come_from_a_pipe_and_answers_go_to_one_and_bad_lines_to_the_other(counting_folder: Path) -> None:
    lines = json.dumps(line(1)) + "\n\nnonsense\n" + json.dumps({**line(2), "body": {"model": "other"}}) + "\n"
    done = qwonnx("batch", counting_folder, "-", "-", *ENGINE, stdin=lines)
    assert done.returncode == 1
    (row,) = map(json.loads, done.stdout.splitlines())
    assert row["custom_id"] == "id-1"
    *errors, last = done.stderr.splitlines()
    assert last == "qwonnx: 1 answered, 2 without an answer (see above)"
    codes = {each["error"]["code"]: each["line"] for each in map(json.loads, errors)}
    assert codes == {"invalid_json": 3, "missing_required_parameter": 4}


def test_presets_write_rows_with_their_answers(counting_folder: Path, tmp_path: Path) -> None:
    folder, questions, out = tmp_path / "documents", tmp_path / "questions", tmp_path / "rows.jsonl"
    folder.mkdir()
    (folder / "a.txt").write_text("Words of a document. " * 20)
    questions.write_text("Who?\nWhen?\nWhere?\n")
    options = ("--max-tokens", 4, "--max-num-seqs", 4, "--max-model-len", 1024, "--threads", 1)
    done = qwonnx("batch", counting_folder, out, "--documents", folder, "--questions", questions, *options)
    assert done.returncode == 0, done.stderr
    rows = {row["custom_id"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert sorted(rows) == ["a.txt#1", "a.txt#2", "a.txt#3"]
    assert rows["a.txt#3"]["question"] == "Where?"
    assert rows["a.txt#3"]["usage"]["prompt_tokens_details"]["cached_tokens"] > 100
    assert rows["a.txt#3"]["answer"]


def test_what_a_batch_cannot_do_is_one_line(counting_folder: Path, tmp_path: Path) -> None:
    asked, out = write_lines(tmp_path / "in.jsonl", 1), tmp_path / "out.jsonl"
    out.write_text("{}\n")
    refusals = {
        "exists: give --resume": (asked, out),
        "is no answer of a batch": (asked, out, "--resume"),
        "give IN and OUT": (asked,),
        "cannot read": (tmp_path / "none", tmp_path / "new"),
        "go together": (asked, tmp_path / "new", "--questions", asked),
        "exclude each other": (asked, tmp_path / "new", "--translate", "German", "--service", asked),
        "names no language": (asked, tmp_path / "new", "--translate", ","),
        "give one of them": (asked, out, "--resume", "--force"),
    }
    for message, words in refusals.items():
        assert message in error_line(qwonnx("batch", counting_folder, *words))
    assert out.read_text() == "{}\n"
    assert not (tmp_path / "new").exists()
