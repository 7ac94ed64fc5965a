"""The printed report of an evaluation."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from qwonnx.export.evaluation.report import (
    EvalReport,
    ExpertUsage,
    LanguageScore,
    LayerUsage,
    ModelRow,
    MtpScore,
    Score,
    Skipped,
    SuiteRow,
    TaskScore,
    TextScore,
)
from qwonnx.handlers.cli.eval_tables import eval_tables

pytestmark = pytest.mark.fast

ARTIFACT = ModelRow("artifact", "tiny", "id", "int4", "cpu", "int8", "float32", 4)
NOTHING = EvalReport(1, "0", ARTIFACT, None, None, (), (), (), None, None, None, ())
GOOD = Score(4, 0, 3, 1, 0.75, 1234, 2.5, 0.8)
SKIPPED = Score(0, 2, 0, 0, None, 0, None, None)


def shown(report: EvalReport, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    for part in eval_tables(report):
        console.print(part)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_the_model_is_said_first() -> None:
    model = "tiny: artifact, weights int4, activations int8, keys and values float32, target cpu, 4 at once"
    assert " ".join(shown(NOTHING)).strip() == model
    checkpoint = dataclasses.replace(ARTIFACT, kind="checkpoint", weights="bfloat16")
    lines = shown(dataclasses.replace(NOTHING, model=checkpoint))
    assert lines[0] == "tiny: checkpoint (bfloat16), transformers in float32"


def test_scores_stand_by_task_mode_and_language_with_their_sum() -> None:
    tasks = (TaskScore("tools", False, GOOD), TaskScore("tools", True, SKIPPED))
    suite = SuiteRow("questions.jsonl", "0", 9, 6)
    languages = (LanguageScore("Thai", GOOD),)
    lines = shown(dataclasses.replace(NOTHING, suite=suite, total=GOOD, tasks=tasks, languages=languages))
    assert "6 of 9 questions of questions.jsonl" in lines
    assert "tools 4 3 75.0% 1,234 2.5000 80.0%" in lines
    assert "tools, thinking skipped - - - - -" in lines
    assert "all 4 3 75.0% 1,234 2.5000 80.0%" in lines
    assert "Thai 4 3 75.0% 1,234 2.5000 80.0%" in lines


def test_one_task_alone_has_no_sum() -> None:
    tasks, suite = (TaskScore("tools", False, GOOD),), SuiteRow("q", "0", 4, 4)
    lines = shown(dataclasses.replace(NOTHING, suite=suite, total=GOOD, tasks=tasks))
    assert not any(line.startswith("all ") for line in lines)


def test_text_experts_drafts_and_what_was_left_out_have_a_line_each() -> None:
    report = dataclasses.replace(
        NOTHING,
        text=TextScore("sample.txt", 5000, 1024, 12345.6, None),
        experts=ExpertUsage(8, 2, 5000, (LayerUsage(0, 2.5, 0.8333, 0.1),)),
        mtp=MtpScore(1000, 750, 0.75),
        skipped=(Skipped("with pictures: artifacts read only text", 2),),
        notes=("one thing",),
    )
    lines = shown(report, 100)
    assert "sample.txt: perplexity 1.235e+04 over 5,000 tokens, - of them the likeliest" in lines
    assert "Experts, 2 of 8, by 5,000 predicted tokens" in lines
    assert "0 2.500 83.3% 10.0%" in lines
    assert "MTP head: 75.0% of 1,000 drafts match the model's own tokens" in lines
    assert "Skipped: 2 questions with pictures: artifacts read only text." in lines
    assert "Note: one thing." in lines
