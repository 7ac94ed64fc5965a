"""`qwonnx batch`: many requests from files, one engine that is kept full."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from qwonnx.handlers.batch.errors import BatchError
from qwonnx.handlers.batch.lines import read_lines, unique
from qwonnx.handlers.batch.results import PIPE, Results
from qwonnx.handlers.batch.run import BatchRun, Progress, Speed
from qwonnx.handlers.batch.tasks import (
    CHAT_PATH,
    ChatOptions,
    lines_of,
    messages_to,
    questions_about,
    text_of,
    translations,
)
from qwonnx.handlers.batch.work import Refused, Work
from qwonnx.handlers.cli.arguments import ArtifactArgument
from qwonnx.handlers.cli.engine_options import DeviceOption, KernelsOption, runtime_settings
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.machine import prepare_process, settle_process
from qwonnx.runtime.quantities import parse_bytes
from qwonnx.runtime.settings import RuntimeSettings

_LINE_SECONDS = 30.0
_MAX_TOKENS = 1024
_STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143}
_FAILED = 1

_PATHS = (CHAT_PATH, "/v1/completions", "/v1/responses")  # of the application's routes, those that a line may name


def batch(
    artifact: ArtifactArgument,
    files: Annotated[
        list[Path], typer.Argument(metavar="IN OUT", help="JSON lines; - is a pipe. With --documents only OUT.")
    ],
    errors: Annotated[
        Path | None, typer.Option(help="File of lines without an answer; by default OUT.errors.jsonl.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the answers in OUT, and ask the other lines.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.")] = False,
    documents: Annotated[
        Path | None,
        typer.Option(help="Preset: ask --questions about each file of this folder."),
    ] = None,
    questions: Annotated[Path | None, typer.Option(help="With --documents: file with a question in each line.")] = None,
    translate: Annotated[
        str | None,
        typer.Option(
            help="Preset: translate each line of IN into these languages, such as German,Swahili.",
        ),
    ] = None,
    service: Annotated[
        Path | None,
        typer.Option(help="Preset: answer each line of IN after the system prompt in this file."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer of a preset, at most.")] = _MAX_TOKENS,
    temperature: Annotated[float | None, typer.Option(min=0, help="Of a preset; by default the model's own.")] = None,
    thinking: Annotated[bool, typer.Option("--thinking", help="Let the model reason first, in a preset.")] = False,
    model_name: Annotated[
        str | None, typer.Option(help="Answer only lines that name this model; by default any.")
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests that run at once.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Tokens of prompt and answer together.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory for the whole process, such as 8GB.")] = None,
    prefix_cache_bytes: Annotated[
        str | None, typer.Option(help="Memory to keep shared beginnings, such as 500MB.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of ONNX Runtime; by default all cores.")] = None,
    kernels: KernelsOption = None,
    device: DeviceOption = None,
) -> None:
    """Answer the requests of a file, many at a time.

    IN has a request in each line, in the form of OpenAI's batches: {"custom_id": "1", "method": "POST", "url":
    "/v1/chat/completions", "body": {...}}; url may be /v1/responses or /v1/completions, too. OUT gets a line for
    each answer, in the order in which they end. Lines that have no answer go to OUT.errors.jsonl, and the exit
    status is then 1. After Ctrl-C, a crash or a power cut, --resume goes on. Requests that begin with the same
    system prompt share its states.

    Examples:

        qwonnx batch ./qwen-int4 requests.jsonl answers.jsonl

        qwonnx batch ./qwen-int4 out.jsonl --documents ./contracts --questions q.txt

        qwonnx batch ./qwen-int4 segments.txt rows.jsonl --translate German,Swahili

        qwonnx batch ./qwen-int4 messages.txt out.jsonl --service system.txt
    """
    prepare_process()
    wanted = [documents is not None, translate is not None, service is not None]
    if sum(wanted) > 1:
        raise CommandError("--documents, --translate and --service exclude each other: give one")
    if (documents is None) != (questions is None):
        raise CommandError("--documents and --questions go together: give both")
    if len(files) != (1 if documents else 2):
        raise CommandError("give OUT alone with --documents" if documents else "give IN and OUT, two files")
    if resume and force:
        raise CommandError("--resume keeps what --force replaces: give one of them")
    out = files[-1]
    if errors is None and out != PIPE:
        errors = out.with_suffix(f".errors{out.suffix}")
    runtime = runtime_settings(
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        memory_bytes=None if memory is None else parse_bytes(memory, "--memory", at_least=0),
        prefix_cache_bytes=(
            None if prefix_cache_bytes is None else parse_bytes(prefix_cache_bytes, "--prefix-cache-bytes", at_least=0)
        ),
        num_threads=threads,
        kernels=kernels,
        device=device,
    )
    opened = open_artifact(artifact)
    name = model_name or opened.manifest.source.checkpoint
    chat = ChatOptions(name, max_tokens, temperature, thinking)
    server = _server_settings(model_name)
    try:
        with ExitStack() as held:
            if documents is not None and questions is not None:
                asked = lines_of(questions)
                source, total = questions_about(documents, asked, chat), None
            else:
                lines, total = held.enter_context(_lines(files[0])), _count(files[0])
                if translate is not None:
                    languages = [each.strip() for each in translate.split(",") if each.strip()]
                    if not languages:
                        raise CommandError("--translate names no language: give some, such as German,Swahili")
                    source, total = translations(lines, languages, chat), total and total * len(languages)
                elif service is not None:
                    source = messages_to(text_of(service), lines, chat)
                else:
                    source = read_lines(lines, _PATHS, server.max_body_bytes, None if model_name else name)
            results = held.enter_context(Results(out, errors, resume=resume, force=force))
            progress = _run(opened, runtime, server, unique(source), results, total)
    except BatchError as error:
        raise CommandError(str(error)) from error
    told = f"{progress.answered} answered"
    told += f", {progress.kept} kept" if progress.kept else ""
    told += f", {progress.failed} without an answer (see {errors or 'above'})" if progress.failed else ""
    print(f"qwonnx: {told}", file=sys.stderr)
    if progress.failed:
        raise typer.Exit(_FAILED)


@contextmanager
def _lines(path: Path) -> Iterator[IO[bytes]]:
    """
    Raises:
        CommandError: it cannot be read.
    """
    if path == PIPE:
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise CommandError(f"cannot read {path} ({error.strerror}): give a file with a request in each line") from error
    with file:
        yield file


def _count(path: Path) -> int | None:
    """The lines of a regular file, for the progress; None of a pipe."""
    if path == PIPE or not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _server_settings(model_name: str | None) -> ServerSettings:
    """Of an application that only this process asks: it needs no key, and no gateway stands before it."""
    settings = ServerSettings.from_environment()
    return dataclasses.replace(
        settings,
        model_name=model_name or settings.model_name,
        api_key=None,
        api_keys=None,
        base_path=None,
        max_answer_seconds=None,
    )


def _run(
    artifact: Artifact,
    runtime: RuntimeSettings,
    server: ServerSettings,
    source: Iterator[Work | Refused],
    results: Results,
    total: int | None,
) -> Progress:
    """
    Raises:
        BatchError: a row cannot be written.
        the errors of opening the engine.
        typer.Exit: a signal came.
    """
    from qwonnx.handlers.app import create_app
    from qwonnx.handlers.engine_start import open_engine
    from qwonnx.handlers.model_host import ModelHost

    logging.getLogger("qwonnx").setLevel(logging.ERROR)  # each row says what became of its request
    host = ModelHost(
        lambda: open_engine(artifact, runtime),
        model_names=server.model_names,
        any_model_name=server.any_model_name,
        on_ready=settle_process,
        on_failure=lambda error: None,
    )
    app = create_app(host, server)
    host.wait()
    try:
        results.forget_errors()  # of an earlier run: their lines are asked again
        with _shown(total) as show:
            run = BatchRun(app, source, results, at_once=runtime.max_num_seqs, on_progress=show)
            stopped = asyncio.run(_until_signal(run, host.close))
    finally:
        host.close()
    if stopped is not None:
        done = run.progress
        told = f"stopped; {done.kept + done.answered} lines have their answer, and --resume asks the others"
        print(f"qwonnx: {told}", file=sys.stderr)
        raise typer.Exit(_STOPPED[stopped])
    return run.progress


async def _until_signal(run: BatchRun, close: Callable[[], None]) -> signal.Signals | None:
    """Run; the signal that ended it, or None. The engine is closed before the loop, to which it gives its outputs."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(run.run())
    came: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        came.append(number)
        task.cancel()

    for number in _STOPPED:
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt
            loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not came:
            raise
        return came[0]
    finally:
        await asyncio.to_thread(close)
    return None


@contextmanager
def _shown(total: int | None) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, else a line every half minute; both on standard error."""
    speed, console = Speed(), Console(stderr=True)
    if not console.is_terminal:
        yield _line_printer(speed, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("answering", total=total)

        def show(progress: Progress) -> None:
            rate = f"{speed.tokens_per_second(progress):,.0f} tokens/s"
            failed = f", {progress.failed} failed" if progress.failed else ""
            bar.update(task, completed=progress.done, description=f"{rate}{failed}")

        yield show


def _line_printer(speed: Speed, total: int | None) -> Callable[[Progress], None]:
    printed_at = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal printed_at
        if time.monotonic() - printed_at < _LINE_SECONDS:
            return
        printed_at = time.monotonic()
        told = f"{progress.done}{f' of {total}' if total else ''} lines, {progress.failed} failed"
        told += f", {speed.tokens_per_second(progress):,.0f} tokens/s"
        left = speed.seconds_left(progress, total) if total else None
        told += f", {left:,.0f} s left" if left is not None else ""
        print(f"qwonnx: {told}", file=sys.stderr, flush=True)

    return show
