"""`qwonnx rm`: remove pulled models."""

from __future__ import annotations

from typing import Annotated

import typer

from qwonnx.handlers.models.store import ModelStore
from qwonnx.runtime.quantities import bytes_text


def remove(
    models: Annotated[list[str], typer.Argument(help="Names of pulled models.", metavar="MODEL...")],
    force: Annotated[bool, typer.Option("--force", help="Remove a model that a process uses, too.")] = False,
) -> None:
    """Remove pulled models from the disk.

    A process that uses a removed model keeps it until it ends, and its space comes back then. Checkpoints in the hub's
    own cache stay.

    Examples:

        qwonnx rm qwen3.5-0.8b

        qwonnx rm qwen3.5-0.8b:best qwen3.5-4b
    """
    store = ModelStore()
    names = list(dict.fromkeys(str(store.find(model).name) for model in models))  # all exist, or none is removed
    for name in names:
        typer.echo(f"removed {name}, {bytes_text(store.remove(name, even_if_used=force))}")
