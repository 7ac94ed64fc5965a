"""`qwonnx bake`: store the states of system prompts in an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwonnx.handlers.cli.engine_options import KERNELS_HELP, runtime_settings
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.system_prompts import bake_prompts, read_prompt
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.cache.baked_prefixes import remove_others
from qwonnx.runtime.native.kernels import Kernels


def bake(
    artifact: Annotated[Path, typer.Argument(help="An artifact's folder.")],
    prompts: Annotated[
        list[Path] | None,
        typer.Argument(
            help="System prompts, one per file: a text, or a .json with messages (only system) and tools, as in a chat"
            " request.",
            metavar="FILE...",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove all other baked prompts; without FILE, all baked prompts.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="Threads of ONNX Runtime; by default all cores.")] = None,
    kernels: Annotated[Kernels | None, typer.Option(help=KERNELS_HELP)] = None,
) -> None:
    """Compute system prompts once and store their states in the artifact, for all processes that open it.

    A chat that begins with exactly these system messages and tools does not compute them again, even in a new process.
    `qwonnx inspect` lists baked prompts. After a new export, bake again.

    Examples:

        qwonnx bake ./qwen-int4 system.txt

        qwonnx bake ./qwen-int4 support.json sales.json --replace
    """
    if not prompts and not replace:
        raise CommandError("give a FILE with a system prompt, or --replace alone to remove all baked prompts")
    read = {path: read_prompt(path) for path in prompts or ()}
    settings = runtime_settings(num_threads=threads, kernels=kernels)
    kept = bake_prompts(artifact, read, settings) if read else []
    if replace:
        try:
            removed = remove_others(open_artifact(artifact), kept)
        except OSError as error:
            raise CommandError(f"cannot remove {error.filename} ({error.strerror}): remove it by hand") from error
        for path in removed:
            typer.echo(f"removed {path}")
