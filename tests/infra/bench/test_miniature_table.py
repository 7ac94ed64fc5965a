"""The table of the miniature has the numbers of the reports."""

from __future__ import annotations

from typing import Any

import pytest

from infra.bench.miniature_table import Column, changes, examples, tables

pytestmark = pytest.mark.fast


def column(name: str, right: tuple[bool, ...], mtp: float | None) -> Column:
    score = {"exact": sum(right) / len(right), "num_answered": len(right), "perplexity": 1.5, "likeliest": 0.75}
    layers = [{"entropy_share": 0.9, "least_share": 0.4}, {"entropy_share": 0.8, "least_share": 0.2}]
    report: dict[str, Any] = {
        "total": score,
        "tasks": [{"task": "glossary", "thinking": thinking, "score": score} for thinking in (False, True)],
        "languages": [{"language": "Thai", "score": score}],
        "experts": {"layers": layers},
        "mtp": None if mtp is None else {"acceptance": mtp},
    }
    return Column(name, report, tuple({"right": one, "answer": "a\nb"} for one in right), 1.0)


def test_columns_are_compared_with_the_first_question_by_question() -> None:
    first, other = (
        column("transformers", (True, True, False, True), 0.5),
        column("int4", (False, True, True, False), None),
    )
    assert changes(first, other) == ([0, 3], [2])
    lines = list(tables([first, other], column("transformers", (True, False, False, False), None)))
    assert lines[0] == "| exact match, held out | transformers | int4 |"
    assert "| glossary, thinking (4 asked, ± 21.7) | 75.0% | 50.0% |" in lines
    assert "| glossary, thinking (4 asked, ± 21.7) | 25.0% |  |" in lines  # of the suite with pictures
    assert "| right answers lost, won, beside transformers |  | 2, 1 |" in lines
    assert "| drafts of the MTP head accepted | 50.0% |  |" in lines
    assert "| entropy of the routers' choices, of its most: mean, least layer | 85.0%, 80.0% | 85.0%, 80.0% |" in lines
    assert lines[-1].endswith("in percent: Thai 75 / 50")


def test_examples_are_the_first_questions_whether_they_were_answered_right_or_not() -> None:
    def line(task: str, **more: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"{task}?"}]
        return {"task": task, "messages": messages, "thinking": False, "expected": {"content": "x"}, **more}

    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    questions = [
        line("glossary", language="Thai", thinking=True),
        line("glossary", language="Thai"),
        line("glossary", language="Thai"),
        line("tools", expected=call),
    ]
    assert list(examples(questions, column("int4", (True, False, True, False), None)))[2:] == [
        "| glossary? | a b | x |",
        '| tools? | a b | `[{"name": "f", "arguments": {}}]` |',
    ]
