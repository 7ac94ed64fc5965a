"""System prompts of `bake` and `export --prefix`: read the files, bake them, print the progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.progress_lines import step_progress
from qwonnx.handlers.cli.text_file import read_text
from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.quantities import bytes_text
from qwonnx.runtime.settings import RuntimeSettings

if TYPE_CHECKING:  # imports onnxruntime
    from qwonnx.runtime.text.chat_prompt import SystemPrompt


def read_prompt(path: Path) -> SystemPrompt:
    """The prompt in a file: JSON if the name ends in .json; otherwise the whole text is the system message.

    Raises:
        CommandError: it cannot be read, or is not a prompt.
    """
    from qwonnx.handlers.chat.system_prompt import parse_prompt
    from qwonnx.runtime.text.chat_prompt import SystemPrompt

    text = read_text(path)
    if path.suffix.lower() != ".json":
        return SystemPrompt([{"role": "system", "content": text}], [])
    try:
        return parse_prompt(text)
    except InvalidRequestError as error:
        raise CommandError(f"{path}: {error}") from error


@contextmanager
def token_progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar of the tokens that were read, or lines without a terminal; give it the numbers of those done and of all."""
    if not console.is_terminal:
        with step_progress("baking", console) as update:
            yield lambda done, total: update(f"baking: {done} of {total} tokens")
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("baking", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def bake_prompts(artifact: Path, prompts: Mapping[Path, SystemPrompt], settings: RuntimeSettings) -> list[Path]:
    """Bake prompts with a progress bar, print a line for each, and return the paths of the prefixes.

    Raises:
        CommandError: the artifact's folder cannot be written.
        ArtifactError, QwonnxRuntimeError: see baking.bake.
    """
    from qwonnx.runtime.baking import bake

    started = time.monotonic()
    console = Console(stderr=True)
    with token_progress(console) as on_tokens:
        try:
            baked = bake(artifact, list(prompts.values()), settings, on_tokens=on_tokens)
        except OSError as error:
            raise CommandError(
                f"cannot write into {artifact} ({error.strerror or error}): free some space, or copy it"
            ) from error
    for source, prefix in zip(prompts, baked, strict=True):
        status = "" if prefix.is_new else ", already baked"
        line = f"{source}: {prefix.num_tokens} tokens, {bytes_text(prefix.num_bytes)} in {prefix.path}{status}"
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
    if any(prefix.is_new for prefix in baked):
        console.print(f"baked in {time.monotonic() - started:.0f} s", highlight=False)
    return [prefix.path for prefix in baked]
