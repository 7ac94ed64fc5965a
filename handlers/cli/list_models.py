"""`qwonnx list`: the pulled models."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer
from rich.console import Console

from qwonnx.handlers.cli.tables import add_row, numbers_table
from qwonnx.handlers.models.store import ModelStore
from qwonnx.handlers.models.stored_models import PulledModel
from qwonnx.runtime.quantities import bytes_text

_AGES = ((86_400, "day"), (3600, "hour"), (60, "minute"))


def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the pulled models: name, recipe, size, and when they were pulled and used.

    An unfinished model was interrupted: `qwonnx pull` goes on with it, `qwonnx rm` removes it.

    Examples:

        qwonnx list

        qwonnx list --json
    """
    store = ModelStore()
    models = store.models()
    if as_json:
        typer.echo(json.dumps([as_document(model) for model in models], indent=1, ensure_ascii=False))
        return
    if not models:
        typer.echo(f"There are no models in {store.folder}: qwonnx pull Qwen/Qwen3.5-0.8B gets one")
        return
    table = numbers_table("name", "recipe", "size", "pulled", "used")
    for column in table.columns[:2]:
        column.no_wrap, column.overflow, column.justify = False, "fold", "left"
    now = time.time()
    for model in models:
        name = str(model.name).rpartition(":")[0]
        pulled = ago(model.record.pulled, now) if model.is_complete else "unfinished"
        add_row(table, name, model.name.recipe, bytes_text(model.num_bytes), pulled, ago(model.used, now))
    Console().print(table)


def as_document(model: PulledModel) -> dict[str, object]:
    """A model for programs; times are seconds since 1970, sizes bytes."""
    record = model.record
    return {
        "name": str(model.name),
        "recipe": record.recipe,
        "bytes": model.num_bytes,
        "pulled": record.pulled,
        "used": model.used,
        "complete": model.is_complete,
        "source": record.source,
        "revision": record.revision,
        "commit": record.commit,
        "target": record.target,
        "why": record.why,
        "artifact": str(model.artifact),
    }


def ago(when: float | None, now: float) -> str:
    """How long ago a time was, in the largest unit that counts."""
    if when is None:
        return "never"
    for seconds, unit in _AGES:
        if (count := int(max(0, now - when) // seconds)) > 0:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
