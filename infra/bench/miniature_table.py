"""One table of the trained miniature's accuracy, and of the loss in its exports.

    python -m infra.bench.miniature_table [--checkpoint FOLDER] [--glossary 1536] [--jobs 2]

`qwonnx eval` asks held-out questions of transformers' float32 model of the checkpoint and of artifacts, --jobs models
at once, each on its share of the cores. Weights are exported by the default recipes. A quantised cache of keys and
values is measured with float32 weights, to show only its own loss. Artifacts do not read pictures, so questions about
pictures are a separate suite for transformers' model; all other numbers come from the same questions.

The tables are Markdown, as tests/miniature/CARD.md has them. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from infra.miniature import pictures
from infra.miniature.checkpoint import TRAINED
from infra.miniature.evaluate import Numbers
from infra.miniature.mixture import Mixture, Proportions
from infra.miniature.suite import write_suite, write_suites
from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.runtime.machine import cpu_quota
from tests.handlers.cli.commands import QWONNX

ARTIFACTS = {
    "fp32": ExportOptions(weights="fp32"),
    "int8": ExportOptions(weights="int8"),
    "int4": ExportOptions(weights="int4"),
    "fp32, cache int8": ExportOptions(weights="fp32", kv="int8"),
    "fp32, cache int4": ExportOptions(weights="fp32", kv="int4"),
}
REFERENCE = "transformers"
EXAMPLES = ("Swahili", "Thai", "Arabic", "Japanese", "Hindi", "Georgian", "tools", "tools")
_QUESTIONS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Column:
    """One model: the report of `qwonnx eval` and the lines of its --answers, one a question."""

    name: str
    report: dict[str, Any]
    answers: tuple[dict[str, Any], ...]
    seconds: float

    @property
    def right(self) -> list[bool]:
        """Whether each answer is right."""
        return [bool(line["right"]) for line in self.answers]

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """Scores by the name of a task."""
        return {one["task"] + ", thinking" * one["thinking"]: one["score"] for one in self.report["tasks"]}

    @property
    def languages(self) -> dict[str, float]:
        """Exact match by language."""
        return {one["language"]: one["score"]["exact"] for one in self.report["languages"]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=TRAINED)
    parser.add_argument("--glossary", type=int, default=1536, help="questions, all in held-out phrasings")
    parser.add_argument("--thinking", type=int, default=256, help="questions of the glossary with thinking")
    parser.add_argument("--tools", type=int, default=64)
    parser.add_argument("--tools-thinking", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument(
        "--lengths", type=int, nargs="*", default=[2048, 4096, 8192], help="tokens of retrieval's texts"
    )
    parser.add_argument("--retrieval", type=int, default=16, help="questions of each length")
    parser.add_argument("--only", nargs="*", choices=[REFERENCE, *ARTIFACTS], default=[REFERENCE, *ARTIFACTS])
    parser.add_argument("--seed", type=int, default=100, help="of the questions; the training scores itself with 0")
    parser.add_argument("--jobs", type=int, default=2, help="models that are evaluated at once")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    mixture = Mixture(Tokenizer.from_file(str(options.checkpoint / "tokenizer.json")), 0, Proportions())
    with tempfile.TemporaryDirectory() as scratch:
        suite = Path(scratch) / "suite.jsonl"
        columns = _columns(suite, mixture, options)
        questions = _lines(suite)
        seeing = _seeing(Path(scratch) / "pictures.jsonl", options)
    for line in (
        *tables(columns, seeing),
        "",
        *examples(questions, next((one for one in columns if one.name == "int4"), columns[-1])),
    ):
        print(line)
    command = " ".join(["python -m infra.bench.miniature_table", *(sys.argv[1:] if arguments is None else arguments)])
    result = {
        "benchmark": "miniature_table",
        "command": command,
        "seconds": round(time.monotonic() - began, 1),
        "pictures": None if seeing is None else seeing.report["total"],
        "models": {
            column.name: {**column.report, "lost": len(lost), "won": len(won), "seconds": round(column.seconds, 1)}
            for column in columns
            for lost, won in [changes(columns[0], column)]
        },
    }
    print(json.dumps(result, ensure_ascii=False))


def _columns(suite: Path, mixture: Mixture, options: argparse.Namespace) -> list[Column]:
    """Write the questions and the artifacts, and ask every model, the slowest first."""
    retrieval = dict.fromkeys(options.lengths, options.retrieval)
    numbers = Numbers(options.glossary, options.thinking, options.tools, options.tools_thinking, 0, retrieval)
    write_suites(suite, mixture, options.seed, numbers)
    models: dict[str, Path] = {}
    for name in options.only:
        models[name] = (
            options.checkpoint if name == REFERENCE else suite.parent / name.replace(", ", "-").replace(" ", "-")
        )
        if name != REFERENCE:
            export_checkpoint(options.checkpoint, models[name], ARTIFACTS[name])
    with ThreadPoolExecutor(options.jobs) as pool:
        return list(pool.map(lambda name: _evaluate(name, models[name], suite, options.jobs), models))


def _evaluate(name: str, model: Path, suite: Path, jobs: int = 1) -> Column:
    """Run `qwonnx eval` on the share of the cores of one of `jobs` jobs."""
    began = time.monotonic()
    threads = max(1, (cpu_quota() or os.cpu_count() or 1) // jobs)
    answers = suite.with_name(f"{name}-answers.jsonl")
    command = [*QWONNX, "eval", str(model), "--suite", str(suite), "--answers", str(answers), "--json"]
    command += ["--threads", str(threads)]
    if name != REFERENCE:
        command += ["--max-num-seqs", str(_QUESTIONS_AT_ONCE)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.monotonic() - began
    print(f"{name}: {seconds:.0f} s", file=sys.stderr)
    return Column(name, json.loads(done.stdout), tuple(_lines(answers)), seconds)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _seeing(suite: Path, options: argparse.Namespace) -> Column | None:
    """transformers' answers to questions about pictures; None if there are no such questions."""
    if not options.pictures:
        return None
    write_suite(suite, pictures.held_out(options.pictures, options.seed))
    return _evaluate(REFERENCE, options.checkpoint, suite)


def changes(one: Column, other: Column) -> tuple[list[int], list[int]]:
    """Questions that the first answers right and the second wrong, and the reverse."""
    pairs = list(enumerate(zip(one.right, other.right, strict=True)))
    return (
        [index for index, (before, after) in pairs if before and not after],
        [index for index, (before, after) in pairs if after and not before],
    )


def tables(columns: Sequence[Column], seeing: Column | None) -> Iterator[str]:
    """A row for each number and a column for each model, then the languages, the least known first.

    `seeing` has questions about pictures, for the first column's model.
    """
    first = columns[0]
    yield _row("exact match, held out", *(column.name for column in columns))
    yield _row("---", *("---" for _ in columns))
    for task, one in first.tasks.items():
        yield _row(_asked(task, one), *(_percent(column.tasks[task]["exact"]) for column in columns))
    for task, one in seeing.tasks.items() if seeing else ():
        yield _row(_asked(task, one), _percent(one["exact"]), *("" for _ in columns[1:]))
    yield _row(
        f"right answers lost, won, beside {first.name}",
        "",
        *(f"{len(lost)}, {len(won)}" for lost, won in (changes(first, column) for column in columns[1:])),
    )
    totals = [column.report["total"] for column in columns]
    yield _row("perplexity of the right answers", *(f"{total['perplexity']:.4f}" for total in totals))
    yield _row("tokens of them that were the likeliest", *(_percent(total["likeliest"]) for total in totals))
    heads = [column.report["mtp"] for column in columns]
    yield _row(
        "drafts of the MTP head accepted", *("" if head is None else _percent(head["acceptance"]) for head in heads)
    )
    layers = [column.report["experts"]["layers"] for column in columns]
    yield _row(
        "least used expert of any layer, of its share", *(_percent(min(_of(each, "least_share"))) for each in layers)
    )
    yield _row(
        "entropy of the routers' choices, of its most: mean, least layer",
        *(
            f"{_percent(sum(shares) / len(shares))}, {_percent(min(shares))}"
            for shares in (_of(each, "entropy_share") for each in layers)
        ),
    )
    yield ""
    shown = [column for column in columns if column.name in (first.name, "int4")]
    yield f"Glossary by language, both modes, {' / '.join(column.name for column in shown)}, in percent: " + ", ".join(
        f"{language} {' / '.join(f'{100 * column.languages[language]:.0f}' for column in shown)}"
        for language in sorted(first.languages, key=lambda language: (first.languages[language], language))
    )


def examples(questions: Sequence[dict[str, Any]], column: Column) -> Iterator[str]:
    """A model's answers to the first question in each of some languages, and to the first requests for tools."""
    yield _row(f"asked, {column.name}", "answered", "right answer")
    yield _row("---", "---", "---")
    wanted = list(EXAMPLES)
    for question, answer in zip(questions, column.answers, strict=True):
        kind = question.get("language", question["task"])
        if question["thinking"] or kind not in wanted:
            continue
        wanted.remove(kind)
        expected = question["expected"]
        right = expected["content"] or json.dumps([call["function"] for call in expected["tool_calls"]])
        asked = question["messages"][-1]["content"]
        yield _row(*(_cell(text) for text in (asked, answer["answer"], right)))


def _asked(task: str, score: dict[str, Any]) -> str:
    """A task, its number of questions, and the standard error of its share of right answers."""
    error = math.sqrt(score["exact"] * (1 - score["exact"]) / score["num_answered"])
    return f"{task} ({score['num_answered']:,} asked, ± {100 * error:.1f})"


def _cell(text: str) -> str:
    """A text in one line, as code if it has characters of Markdown or HTML."""
    line = " ".join(text.split()).replace("|", "\\|")
    return f"`{line}`" if "<" in line or "{" in line else line


def _of(layers: Sequence[dict[str, float]], name: str) -> list[float]:
    return [layer[name] for layer in layers]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(value: float) -> str:
    return f"{value:.1%}"


if __name__ == "__main__":
    main()
