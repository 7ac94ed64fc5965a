"""`qwonnx show`: where a pulled model came from, and where it is."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer
from rich.console import Console

from qwonnx.handlers.cli.list_models import ago, as_document
from qwonnx.handlers.cli.tables import facts_table
from qwonnx.handlers.models.store import ModelStore
from qwonnx.runtime.quantities import bytes_text


def show(
    model: Annotated[str, typer.Argument(help="Name of a pulled model.", metavar="MODEL")],
    path: Annotated[bool, typer.Option("--path", help="Print only the artifact's folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Show where a pulled model came from, why it has its recipe, and where it is.

    `qwonnx inspect` shows what is in its artifact.

    Examples:

        qwonnx show qwen3.5-0.8b

        du -sh "$(qwonnx show qwen3.5-0.8b --path)"
    """
    found = ModelStore().find(model)
    record, now = found.record, time.time()
    if path:
        typer.echo(str(found.artifact))
    elif as_json:
        typer.echo(json.dumps(as_document(found), indent=1, ensure_ascii=False))
    else:
        revision = f" at {record.revision}" if record.revision is not None else ""
        facts: dict[str, object] = {
            "source": f"{record.source}{revision}",
            "commit": record.commit or "-",
            "recipe": record.why,
            "target": record.target,
            "size": bytes_text(found.num_bytes),
            "pulled": ago(record.pulled, now) if found.is_complete else "unfinished: qwonnx pull goes on",
            "used": ago(found.used, now),
            "artifact": found.artifact,
        }
        Console().print(facts_table(str(found.name), facts))
