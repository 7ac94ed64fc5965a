"""`qwonnx eval` as users run it, on models with known answers."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from qwonnx.export.errors import EvaluationError
from qwonnx.handlers.cli.eval import evaluate
from qwonnx.handlers.cli.failures import CommandError
from tests.handlers.cli.commands import error_line, qwonnx, running
from tests.runtime import counting_model
from tests.runtime.counting_model import make

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def line(task: str, answer: str, question: Any = "Which city?", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"task": task, "messages": messages, "expected": {"role": "assistant", "content": answer}, **more}


LINES = [
    line("capitals", "Paris", language="French"),
    line("capitals", "Rome", language="Italian"),
    line("capitals", " Paris ", language="Italian"),
    line("rivers", "Paris", thinking=True),
    line("pictures", "Paris", [PICTURE, {"type": "text", "text": "Where?"}]),
    line("rivers", "Seine"),
]


@pytest.fixture(scope="module")
def paris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that thinks, and then says Paris to every question."""
    folder = tmp_path_factory.mktemp("paris") / "artifact"
    return counting_model.make(folder, script="<think>\nFrance.\n</think>\n\nParis").folder


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "suite.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in LINES), encoding="utf-8")
    return path


def test_the_report_counts_right_answers_by_task_and_language(paris: Path, suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    result = qwonnx("eval", paris, "--suite", suite, "--max-num-seqs", 2, "--answers", out, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert list(report) == [
        "schema_version", "qwonnx_version", "model", "suite", "total", "tasks", "languages", "skipped", "text",
        "experts", "mtp", "notes",
    ]  # fmt: skip
    assert report["schema_version"] == 1
    assert report["model"] == {
        "kind": "artifact", "name": "counting-model", "id": report["model"]["id"], "weights": "fp32", "target": "cpu",
        "activations": "float32", "kv": "float32", "max_num_seqs": 2,
    }  # fmt: skip
    assert (report["suite"]["name"], report["suite"]["num_questions"], report["suite"]["num_chosen"]) == (
        "suite.jsonl", 6, 6,
    )  # fmt: skip
    total = report["total"]
    assert list(total) == [
        "num_answered", "num_skipped", "num_right", "num_cut_off", "exact", "num_tokens", "perplexity", "likeliest",
    ]  # fmt: skip
    assert (total["num_answered"], total["num_skipped"], total["num_right"], total["exact"]) == (5, 1, 3, 0.6)
    by_task = {(one["task"], one["thinking"]): one["score"]["exact"] for one in report["tasks"]}
    assert by_task == {
        ("capitals", False): 2 / 3, ("pictures", False): None, ("rivers", False): 0, ("rivers", True): 1,
    }  # fmt: skip
    assert {one["language"]: one["score"]["exact"] for one in report["languages"]} == {"French": 1, "Italian": 0.5}
    assert report["skipped"] == [{"reason": "with pictures: artifacts read only text", "num_questions": 1}]
    assert (report["text"], report["experts"], report["mtp"]) == (None, None, None)
    assert qwonnx("eval", paris, "--suite", suite, "--max-num-seqs", 2, "--json").stdout == result.stdout
    lines = [json.loads(text) for text in out.read_text(encoding="utf-8").splitlines()]
    assert [one["right"] for one in lines] == [True, False, True, True, None, False]
    assert lines[0]["answer"] == "<think>\nFrance.\n</think>\n\nParis"


def test_tables_fit_80_columns(paris: Path, suite: Path, tmp_path: Path) -> None:
    (text := tmp_path / "sample.txt").write_text("the the the", encoding="utf-8")
    result = qwonnx("eval", paris, "--suite", suite, "--text", text, COLUMNS="80")
    assert (result.returncode, result.stderr) == (0, "")
    assert all(len(shown) <= 80 for shown in result.stdout.splitlines())
    for words in ("6 of 6 questions", "rivers, thinking", "66.7%", "Italian", "sample.txt: perplexity", "Skipped: 1 "):
        assert words in result.stdout


def test_tasks_and_limits_choose_questions(paris: Path, suite: Path) -> None:
    result = qwonnx("eval", paris, "--suite", suite, "--task", "capitals", "--task", "rivers", "--limit", 2, "--json")
    report = json.loads(result.stdout)
    assert report["suite"]["num_chosen"] == 2
    assert [(one["task"], one["score"]["num_answered"]) for one in report["tasks"]] == [("capitals", 1), ("rivers", 1)]


def test_an_answer_that_does_not_end_is_wrong_and_said_to_be_cut_off(paris: Path, suite: Path) -> None:
    report = json.loads(qwonnx("eval", paris, "--suite", suite, "--max-tokens", 6, "--json").stdout)
    assert (report["total"]["num_right"], report["total"]["num_cut_off"]) == (0, 5)
    assert "5 answers were cut off" in report["notes"][0]


def test_what_cannot_be_evaluated_is_said_in_a_line(paris: Path, suite: Path, tmp_path: Path) -> None:
    def file(name: str, content: str) -> Path:
        (path := tmp_path / name).write_text(content, encoding="utf-8")
        return path

    failing = file("failing.jsonl", json.dumps(line("t", "x", counting_model.FAILING_TEXT)))
    refused = file("refused.jsonl", json.dumps({**line("t", "x"), "messages": [{"role": "user"}]}))
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (paris, {}, "give --suite, --text or both"),
        (paris, {"suite": tmp_path / "none.jsonl"}, "cannot read"),
        (paris, {"suite": suite, "task": ["seas"]}, "no task 'seas'"),
        (paris, {"text": file("short.txt", "x")}, "fewer than two tokens"),
        (paris, {"suite": suite, "answers": tmp_path / "none" / "answers"}, "cannot write"),
        (tmp_path, {"suite": suite}, "neither manifest.json nor config.json"),
        (paris, {"suite": failing}, "the model failed"),
        (paris, {"suite": refused}, "the question of line 1 cannot be rendered"),
    ]
    for model, options, message in cases:
        with pytest.raises((CommandError, EvaluationError), match=re.escape(message)) as caught:
            evaluate(str(model), **options)
        assert "\n" not in str(caught.value)
    bad = file("bad.jsonl", json.dumps(LINES[0]) + '\n{"task": 5}\n')
    assert "line 2 of" in error_line(qwonnx("eval", paris, "--suite", bad))


def test_ctrl_c_ends_it_with_130_and_no_traceback(tmp_path: Path) -> None:
    slow = make(tmp_path / "slow", num_pairs=48).folder  # too long for any machine to finish before the stop
    suite = tmp_path / "suite.jsonl"
    os.mkfifo(suite)  # opening the pipe waits until the command has come this far
    with running("eval", slow, "--suite", suite, "--max-tokens", 3500) as process:
        with suite.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line("t", "x")) + "\n" for _ in range(64))
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=30)
    assert (process.returncode, out, errors) == (130, "", "")
