"""A report as text and tables for an 80-column terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from qwonnx.export.evaluation.report import EvalReport, ExpertUsage, ModelRow, Score
from qwonnx.handlers.cli.tables import add_row, numbers_table


def eval_tables(report: EvalReport) -> Iterator[RenderableType]:
    """The texts and tables to print, in order."""
    yield Text(_model_line(report.model) + "\n")
    if report.suite is not None and report.total is not None:
        yield Text(
            f"{report.suite.num_chosen} of {report.suite.num_questions} questions of {report.suite.name}", "bold"
        )
        rows = {task.task + (", thinking" if task.thinking else ""): task.score for task in report.tasks}
        yield from _scores("task", rows, report.total)
        if report.languages:
            yield from _scores("language", {one.language: one.score for one in report.languages}, None)
    if report.text is not None:
        text = report.text
        yield Text(
            f"{text.name}: perplexity {_number(text.perplexity)} over {text.num_tokens:,} tokens,"
            f" {_percent(text.likeliest)} of them the likeliest\n"
        )
    if report.experts is not None:
        yield from _experts(report.experts)
    if report.mtp is not None:
        mtp = report.mtp
        yield Text(f"MTP head: {_percent(mtp.acceptance)} of {mtp.num_drafted:,} drafts match the model's own tokens\n")
    for skipped in report.skipped:
        yield Text(f"Skipped: {skipped.num_questions} questions {skipped.reason}.")
    for note in report.notes:
        yield Text(f"Note: {note}.")


def _model_line(model: ModelRow) -> str:
    if model.kind == "checkpoint":
        return f"{model.name}: checkpoint ({model.weights}), transformers in float32"
    return (
        f"{model.name}: artifact, weights {model.weights}, activations {model.activations}, keys and values {model.kv},"
        f" target {model.target}, {model.max_num_seqs} at once"
    )


def _scores(first: str, rows: dict[str, Score], total: Score | None) -> Iterator[RenderableType]:
    table = numbers_table(first, "asked", "right", "exact", "tokens", "perplexity", "likeliest")
    for name, score in rows.items():
        add_row(table, name, *_cells(score))
    if total is not None and len(rows) > 1:
        table.add_section()
        add_row(table, "all", *_cells(total))
    yield table


def _cells(score: Score) -> tuple[str, ...]:
    if score.num_skipped and not score.num_answered:
        return "skipped", "-", "-", "-", "-", "-"
    return (
        str(score.num_answered),
        str(score.num_right),
        _percent(score.exact),
        f"{score.num_tokens:,}",
        _number(score.perplexity),
        _percent(score.likeliest),
    )


def _experts(usage: ExpertUsage) -> Iterator[RenderableType]:
    yield Text(
        f"Experts, {usage.num_experts_per_tok} of {usage.num_experts}, by {usage.num_tokens:,} predicted tokens", "bold"
    )
    table = numbers_table("layer", "entropy, bits", f"of log2({usage.num_experts})", "least used, of its share")
    for layer in usage.layers:
        add_row(
            table,
            layer.layer,
            f"{layer.entropy_bits:.3f}",
            _percent(layer.entropy_share),
            _percent(layer.least_share),
        )
    yield table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if value < 1000 else f"{value:.4g}"
