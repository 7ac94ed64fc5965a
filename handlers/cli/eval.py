"""`qwonnx eval`: count a model's correct answers to the questions of a suite, and measure its predictions of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qwonnx.handlers.cli.engine_options import AdapterOption, KernelsOption, name_of, runtime_settings
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.progress_lines import step_progress
from qwonnx.handlers.cli.text_file import read_text
from qwonnx.runtime.artifact.manifest import MANIFEST_NAME
from qwonnx.runtime.native.kernels import Kernels

if TYPE_CHECKING:
    from qwonnx.export.evaluation.run import Outcome
    from qwonnx.export.evaluation.subject import Subject


def evaluate(
    model: Annotated[
        str, typer.Argument(help="An artifact's folder or name, or a checkpoint's folder or hub repo id.")
    ],
    suite: Annotated[
        Path | None, typer.Option(help="Questions with their answers, one JSON object per line; see docs/eval.md.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Measure the perplexity of this UTF-8 text.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Ask only questions of this task; may be given several times.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask at most this many questions, spread evenly over tasks.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Limit for the tokens of an answer; by default twice the expected tokens, plus 64."),
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Questions that an artifact answers at once.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of ONNX Runtime or torch; by default all cores.")
    ] = None,
    kernels: KernelsOption = None,
    adapter: AdapterOption = None,
    answers: Annotated[
        Path | None, typer.Option(help="Write all answers and verdicts to this file, one JSON object per line.")
    ] = None,
    weights_file: Annotated[
        str | None,
        typer.Option(help="Which of several models in a checkpoint's folder, as for `qwonnx export`.", metavar="FILE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Ask a model questions with known answers: exact match by task and language, perplexity, expert usage.

    An artifact runs in qwonnx's engine. A checkpoint runs in transformers in float32, which needs four bytes of memory
    for each parameter. Both decode greedily.

    Examples:

        qwonnx eval ./qwen-int4 --suite questions.jsonl

        qwonnx eval ./checkpoint --suite questions.jsonl --task tools --limit 100

        qwonnx eval ./qwen-int4 --text sample.txt
    """
    if suite is None and text is None:
        raise CommandError("there is nothing to evaluate on: give --suite, --text or both")

    from qwonnx.export.evaluation import run
    from qwonnx.export.evaluation.suite import choose, read_suite
    from qwonnx.handlers.cli.eval_tables import eval_tables

    content = None if text is None else run.Text(text.name, read_text(text))
    read = None if suite is None else read_suite(suite)
    chosen = [] if read is None else choose(read.questions, task or (), limit)
    with step_progress("loading the model", Console(stderr=True)) as update:
        pictures = any(question.pictures for question in chosen)
        subject = _subject(model, max_num_seqs, threads, kernels, weights_file, adapter, pictures=pictures)
        evaluation = run.evaluate(subject, read, chosen, content, max_tokens=max_tokens, on_progress=update)
    if answers is not None:
        _write_answers(answers, evaluation.outcomes)
    if as_json:
        typer.echo(evaluation.report.to_json())
        return
    console = Console()
    for part in eval_tables(evaluation.report):
        console.print(part)


def _subject(
    model: str,
    max_num_seqs: int | None,
    threads: int | None,
    kernels: Kernels | None,
    weights_file: str | None,
    adapter: str | None,
    *,
    pictures: bool,
) -> Subject:
    """The model to evaluate: an artifact, if the folder has a manifest, or else a checkpoint."""
    folder = Path(model) if "/" in model else _folder(model)
    if (folder / MANIFEST_NAME).is_file():
        if weights_file is not None:
            raise CommandError("--weights-file is for checkpoints: an artifact has one model")
        from qwonnx.export.evaluation.artifact_subject import ArtifactSubject

        # Without a prefix cache: an answer must not depend on earlier questions.
        settings = runtime_settings(
            max_num_seqs=max_num_seqs, num_threads=threads, kernels=kernels, prefix_cache_bytes=0, adapter=adapter
        )
        return ArtifactSubject(folder, settings, name_of(adapter))
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CommandError(
            f"{folder} has neither {MANIFEST_NAME} nor config.json: give an artifact's folder or a checkpoint's"
        )
    if max_num_seqs is not None:
        raise CommandError("--max-num-seqs is for artifacts: a checkpoint answers one question at a time")
    if adapter is not None:
        raise CommandError("--adapter is for artifacts: merge it with `qwonnx export --adapter`, and evaluate that")
    if kernels is not None:
        raise CommandError("--kernels is for artifacts: a checkpoint runs in transformers")

    from qwonnx.export.evaluation.checkpoint_subject import CheckpointSubject

    return CheckpointSubject(model, threads, pictures=pictures, weights_file=weights_file)


def _folder(model: str) -> Path:
    """The folder of a name without an owner: with one, it is a checkpoint of the hub."""
    from qwonnx.handlers.models.artifact_path import artifact_path

    return artifact_path(model)


def _write_answers(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write a line for each chosen question of the suite."""
    try:
        with path.open("w", encoding="utf-8") as file:
            for outcome in outcomes:
                question, answer = outcome.question, outcome.answer
                line = {
                    "line": question.line,
                    "task": question.task,
                    "language": question.language,
                    "thinking": question.thinking,
                    "skipped": outcome.skipped,
                    "right": None if answer is None else outcome.right,
                    "complete": None if answer is None else answer.is_complete,
                    "answer": None if answer is None else answer.text,
                    "surprise": None if outcome.scored is None else float(outcome.scored.surprise.sum()),
                    "num_expected_tokens": None if outcome.scored is None else len(outcome.scored.surprise),
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        raise CommandError(f"cannot write {path} ({error.strerror}): choose another place") from error
