"""Translates the cells of a CSV file, many at a time: `python examples/translate_table.py [MODEL] [IN.csv] [OUT.csv]`.

IN.csv has a column `term` and a column `language`. OUT.csv has the same rows, and a column `name`.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TextIO

from qwonnx import LLM

MINIATURE = Path(__file__).parent.parent / "tests" / "miniature" / "checkpoint"
ROWS = [
    {"term": term, "language": language}
    for term in ("Germany", "Norway", "Japan")
    for language in ("Swahili", "Georgian")
]


def read(path: str | None) -> list[dict[str, str]]:
    if path is None:
        return ROWS
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(file: TextIO, rows: list[dict[str, str]]) -> None:
    writer = csv.DictWriter(file, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def main(model: str | Path = MINIATURE, source: str | None = None, target: str = "-") -> None:
    rows = read(source)
    with LLM(model, max_num_seqs=16) as llm:
        questions = [f"What is {row['term']} called in {row['language']}?" for row in rows]
        # One call: the engine answers 16 at a time, and each step reads the weights once for all of them.
        answers = llm.generate(questions, chat=True, thinking=False, temperature=0, max_tokens=32)
    written = [{**row, "name": str(answer)} for row, answer in zip(rows, answers, strict=True)]
    if target == "-":
        write(sys.stdout, written)
    else:
        with open(target, "w", newline="", encoding="utf-8") as file:
            write(file, written)


if __name__ == "__main__":
    main(*sys.argv[1:])
