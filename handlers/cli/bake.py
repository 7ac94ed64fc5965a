"""`qwonnx bake`: system prompts into an artifact, so that no process need read them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwonnx.handlers.cli.engine_options import runtime_settings
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.system_prompts import bake_prompts, read_prompt
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.cache.baked_prefixes import remove_others


def bake(
    artifact: Annotated[Path, typer.Argument(help="An artifact's folder.")],
    prompts: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Each a system prompt: a text, or a .json with messages (the system's alone) and tools, as a chat"
            " request has them.",
            metavar="FILE...",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove what else was baked; without FILE that is everything.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="Threads of ONNX Runtime; by default all cores.")] = None,
) -> None:
    """Compute system prompts once and keep their states in the artifact, for every process that opens it.

    A chat whose system message and tools are these begins after them: the first answer of a new process comes as soon
    as if there were none. What is baked is found by its tokens, so message and tools must be the same to the letter.
    `qwonnx inspect` lists it. An artifact that is exported again has to be baked again.

    Examples:

        qwonnx bake ./qwen-int4 system.txt

        qwonnx bake ./qwen-int4 support.json sales.json --replace
    """
    if not prompts and not replace:
        raise CommandError("give a FILE with a system prompt, or --replace alone to remove what was baked")
    read = {path: read_prompt(path) for path in prompts or ()}
    settings = runtime_settings(num_threads=threads)
    kept = bake_prompts(artifact, read, settings) if read else []
    if replace:
        try:
            removed = remove_others(open_artifact(artifact), kept)
        except OSError as error:
            raise CommandError(f"cannot remove {error.filename} ({error.strerror}): remove it by hand") from error
        for path in removed:
            typer.echo(f"removed {path}")
