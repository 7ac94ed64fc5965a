"""`qwonnx bake`: store the states of system prompts, and how often experts are needed, in an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qwonnx.handlers.cli.arguments import ArtifactArgument
from qwonnx.handlers.cli.engine_options import DeviceOption, KernelsOption, runtime_settings
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.system_prompts import bake_prompts, read_prompt, token_progress
from qwonnx.handlers.cli.text_file import read_text
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.cache.baked_prefixes import remove_others
from qwonnx.runtime.settings import RuntimeSettings


def bake(
    artifact: ArtifactArgument,
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
    experts: Annotated[
        list[Path] | None,
        typer.Option(
            help="A text like those that the model will read and write; may be repeated. Stores how often each expert"
            " is needed: with too little memory for all, the most used ones are read first.",
            metavar="FILE",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of ONNX Runtime; by default all cores.")] = None,
    kernels: KernelsOption = None,
    device: DeviceOption = None,
) -> None:
    """Compute system prompts once and store their states in the artifact, for all processes that open it.

    A chat that begins with exactly these system messages and tools does not compute them again, even in a new process.
    `qwonnx inspect` lists baked prompts. After a new export, bake again.

    Examples:

        qwonnx bake ./qwen-int4 system.txt

        qwonnx bake ./qwen-int4 support.json sales.json --replace

        qwonnx bake ./qwen-int4 --experts conversations.txt
    """
    if not prompts and not replace and not experts:
        raise CommandError(
            "give a FILE with a system prompt, or --replace alone to remove all baked prompts, or --experts FILE"
        )
    read = {path: read_prompt(path) for path in prompts or ()}
    settings = runtime_settings(num_threads=threads, kernels=kernels, device=device)
    kept = bake_prompts(artifact, read, settings) if read else []
    if replace:
        try:
            removed = remove_others(open_artifact(artifact), kept)
        except OSError as error:
            raise CommandError(f"cannot remove {error.filename} ({error.strerror}): remove it by hand") from error
        for path in removed:
            typer.echo(f"removed {path}")
    if experts:
        _bake_uses(artifact, experts, settings)


def _bake_uses(artifact: Path, files: list[Path], settings: RuntimeSettings) -> None:
    from qwonnx.runtime.baking import bake_expert_uses

    texts = [read_text(path) for path in files]
    try:
        with token_progress(Console(stderr=True)) as on_tokens:
            baked = bake_expert_uses(artifact, texts, settings, on_tokens=on_tokens)
    except OSError as error:
        raise CommandError(
            f"cannot write into {artifact} ({error.strerror or error}): free some space, or copy it"
        ) from error
    typer.echo(f"{baked.path}: uses of experts by {baked.num_tokens} tokens")
