"""`qwonnx chat`: a conversation in the terminal, with a model in this process or a running server."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qwonnx.handlers.chat.parts import End, EndReason, Usage
from qwonnx.handlers.chat.sampling_fields import sampling_fields
from qwonnx.handlers.cli.arguments import OptionalArtifactArgument
from qwonnx.handlers.cli.engine_options import AdapterOption, DeviceOption, KernelsOption, name_of, runtime_settings
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.generate import CONTROLS, AnswerPrinter
from qwonnx.handlers.cli.partner import LocalPartner, Partner, RemotePartner
from qwonnx.handlers.cli.sampling_options import with_sampling_options
from qwonnx.handlers.cli.transcript import Transcript
from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.text.answer_events import ContentDelta

HELP = """\
/new            begin again, with the same system message
/system TEXT    another system message; without a text, none
/think on|off   think before answering, or not
/save FILE      write the conversation to a new file
/load FILE      go on with one that was saved
/help           this list
/exit           end; Ctrl-D does it too
A line that ends with \\ goes on in the next one. Ctrl-C interrupts an answer and keeps what there is of it."""


@with_sampling_options
def chat(
    artifact: OptionalArtifactArgument = None,
    url: Annotated[str | None, typer.Option(help="Talk to a running server instead, such as http://host:8000.")] = None,
    model: Annotated[str, typer.Option(help="Model's name, with --url; by default the server's first one.")] = "",
    system: Annotated[str, typer.Option(help="System message.")] = "",
    thinking: Annotated[
        bool | None, typer.Option("--thinking/--no-thinking", help="Think before answering; by default as the model.")
    ] = None,
    sampling: Mapping[str, Any] | None = None,
    threads: Annotated[int | None, typer.Option(help="Threads of ONNX Runtime; by default all cores.")] = None,
    kernels: KernelsOption = None,
    device: DeviceOption = None,
    adapter: AdapterOption = None,
    max_model_len: Annotated[int | None, typer.Option(help="Tokens of the whole conversation.")] = None,
) -> None:
    """Talk to a model in the terminal. /help lists what you can do besides.

    With --url, QWONNX_API_KEY is the key of the server. If stdin is no terminal, each of its lines is a message.

    Examples:

        qwonnx chat ./qwen-int4

        qwonnx chat ./qwen-int4 --system "You translate to French." --no-thinking

        qwonnx chat --url http://127.0.0.1:8000
    """
    if (artifact is None) == (url is None):
        raise CommandError("give either an artifact's folder or --url")
    sampling = sampling or {}
    if url is not None and adapter is not None:
        raise CommandError("--adapter is for a model in this process: with --url, give the adapter's name as --model")
    if url is not None:
        Session(RemotePartner(url, os.environ.get("QWONNX_API_KEY", ""), sampling, model), system, thinking).run()
        return

    from qwonnx.runtime.engine.engine import Engine

    settings = runtime_settings(
        max_num_seqs=1,
        num_threads=threads,
        kernels=kernels,
        device=device,
        max_model_len=max_model_len,
        adapter=adapter,
    )
    assert artifact is not None
    with Engine.open(artifact, settings) as engine:
        Session(LocalPartner(engine, sampling_fields(sampling), name_of(adapter)), system, thinking).run()


class Session:
    """A conversation with a partner.

    Args:
        partner: who answers.
        system: the system message; empty for none.
        thinking: whether the model thinks before it answers; None leaves it to the model.
    """

    def __init__(self, partner: Partner, system: str = "", thinking: bool | None = None) -> None:
        self._partner = partner
        self._transcript = Transcript(system)
        self._thinking = thinking
        self._notes = Console(stderr=True, highlight=False)

    def run(self) -> None:
        """Read messages and answer them, until the end of stdin or /exit."""
        self._note(f"{self._partner.name}. /help lists commands, Ctrl-D ends.")
        read = _reader()
        while (text := read()) is not None:
            if not text.strip():
                continue
            try:
                if text.startswith("/"):
                    if not self._command(text):
                        return
                else:
                    self._answer(text)
            except (CommandError, InvalidRequestError) as error:
                self._note(f"error: {error}")
            except KeyboardInterrupt:  # before or after the parts of an answer
                self._note("interrupted")

    def _command(self, text: str) -> bool:
        """Obey a command; False: it ends the session.

        Raises:
            CommandError: it cannot be obeyed.
        """
        name, _, argument = text[1:].strip().partition(" ")
        argument = argument.strip()
        match name:
            case "exit" | "quit":
                return False
            case "help":
                self._note(HELP)
            case "new":
                self._transcript.said.clear()
                self._note("a new conversation")
            case "system":
                self._transcript.system = argument
                self._note("the system message is set" if argument else "there is no system message")
            case "think" if argument in ("on", "off"):
                self._thinking = argument == "on"
                self._note(f"thinking is {argument}")
            case "save" if argument:
                self._transcript.save(Path(argument))
                self._note(f"saved to {argument}")
            case "load" if argument:
                self._transcript = Transcript.load(Path(argument))
                self._note(f"{len(self._transcript.said)} messages")
            case _:
                raise CommandError(f"{text.split()[0]} is not understood: /help lists the commands")
        return True

    def _answer(self, text: str) -> None:
        """Let the partner answer, and keep both messages; an answer that was interrupted is kept as far as it came.

        Raises:
            CommandError, InvalidRequestError: there is no answer. The message is not kept.
        """
        said = self._transcript.said
        said.append({"role": "user", "content": text})
        answer: list[str] = []
        printer, clock = AnswerPrinter(), _Clock()
        end: End | None = None
        interrupted = False
        try:
            with closing(self._partner.reply(self._transcript.messages, self._thinking)) as parts:
                try:
                    for part in parts:
                        clock.tick()
                        printer.print(part)
                        if isinstance(part, ContentDelta):
                            answer.append(part.text)
                        elif isinstance(part, End):
                            end = part
                except KeyboardInterrupt:
                    interrupted = True
                    printer.print(End(EndReason.STOP, Usage(0, 0, 0, 0)))
        except BaseException:
            if not answer:
                said.pop()
            raise
        finally:
            if answer:
                said.append({"role": "assistant", "content": "".join(answer)})
        if interrupted:
            if not answer:
                said.pop()
            self._note("interrupted; what there is of the answer is kept" if answer else "interrupted")
        elif end is not None:
            self._note(clock.told(end))

    def _note(self, text: str) -> None:
        self._notes.print(text.translate(CONTROLS), style="dim", markup=False, soft_wrap=True)


class _Clock:
    """The times of an answer."""

    def __init__(self) -> None:
        self._asked_at = time.perf_counter()
        self._first_at: float | None = None

    def tick(self) -> None:
        self._first_at = self._first_at or time.perf_counter()

    def told(self, end: End) -> str:
        """The speed in one line."""
        first = self._first_at or self._asked_at
        seconds = time.perf_counter() - first
        usage = end.usage
        rate = f", {(usage.num_generated_tokens - 1) / seconds:.1f} tokens/s" if seconds > 0 else ""
        cut = ", cut off at its limit" if end.reason is EndReason.LENGTH else ""
        found = f"{usage.num_cached_tokens} of {usage.num_prompt_tokens} prompt tokens found"
        return f"{usage.num_generated_tokens} tokens{rate}, first after {first - self._asked_at:.2f} s; {found}{cut}"


def _reader() -> Callable[[], str | None]:
    """Reads the next message; None at the end."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _next_of(_lines())

    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    session: PromptSession[str] = PromptSession("> ", multiline=True, key_bindings=bindings, prompt_continuation="  ")

    def read() -> str | None:
        while True:
            try:
                return session.prompt()
            except KeyboardInterrupt:
                continue  # a line that is given up
            except EOFError:
                return None

    return read


def _next_of(lines: Iterator[str]) -> Callable[[], str | None]:
    return lambda: next(lines, None)


def _lines() -> Iterator[str]:
    """Messages of a stdin that is no terminal: lines, or several whose line breaks follow a backslash."""
    parts: list[str] = []
    for line in sys.stdin:
        text = line.rstrip("\n")
        if text.endswith("\\"):
            parts.append(text[:-1])
            continue
        yield "\n".join([*parts, text])
        parts = []
    if parts:
        yield "\n".join(parts)
