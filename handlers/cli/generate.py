"""`qwonnx generate`: one answer, streamed to the terminal."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qwonnx.handlers.chat.parts import End, Part, PartReader
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.chat.sampling_fields import sampling_fields
from qwonnx.handlers.cli.arguments import ArtifactArgument
from qwonnx.handlers.cli.engine_options import AdapterOption, DeviceOption, KernelsOption, name_of, runtime_settings
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.sampling_options import with_sampling_options
from qwonnx.handlers.cli.text_file import read_text
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.text.answer_events import ContentDelta, ReasoningDelta

CUT_OFF = 3  # exit status
# A model's text must not move the cursor, rename the window or type into the terminal.
CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


@with_sampling_options
def generate(
    artifact: ArtifactArgument,
    prompt: Annotated[
        str | None, typer.Option(help="Continue this text as it is, without a chat template; - reads stdin.")
    ] = None,
    chat: Annotated[str | None, typer.Option(help="Answer this user message; - reads stdin.")] = None,
    system: Annotated[str | None, typer.Option(help="System message, with --chat.")] = None,
    sampling: Mapping[str, Any] | None = None,
    json_schema: Annotated[Path | None, typer.Option(help="The answer is JSON that is valid by this schema.")] = None,
    regex: Annotated[str | None, typer.Option(help="The answer matches this regular expression as a whole.")] = None,
    thinking: Annotated[
        bool | None, typer.Option("--thinking/--no-thinking", help="Think before answering, with --chat.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of ONNX Runtime; by default all cores.")] = None,
    kernels: KernelsOption = None,
    device: DeviceOption = None,
    adapter: AdapterOption = None,
    max_model_len: Annotated[int | None, typer.Option(help="Tokens of prompt and answer together.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print token counts and speed to stderr.")] = False,
) -> None:
    """Generate one answer and print it as it comes: reasoning to stderr, the answer to stdout.

    Sampling options default to the checkpoint's recommendation. The exit status is 3 if an answer with a form (a JSON
    schema or an expression) was cut off, so that it does not have the form.

    Examples:

        qwonnx generate ./qwen-int4 --chat "Why is the sky blue?" --no-thinking

        qwonnx generate ./qwen-int4 --prompt "Once upon" --max-tokens 64 --seed 1

        qwonnx generate ./qwen-int4 --chat "Three colours." --json-schema list.json

        qwonnx generate ./qwen-int4 --system "Translate it." --chat - < letter.txt
    """
    if (prompt is None) == (chat is None):
        raise CommandError("give either --prompt or --chat")
    if chat is None and (system is not None or thinking is not None):
        raise CommandError("--system, --thinking and --no-thinking need --chat")
    if json_schema is not None and regex is not None:
        raise CommandError("give either --json-schema or --regex")
    form = form_of(json_schema, regex)
    text = _text(chat if prompt is None else prompt)
    if chat is not None and not text.strip():
        raise CommandError("--chat is empty: give a message")

    from qwonnx.runtime.engine.engine import Engine

    given = sampling_fields(sampling or {})
    settings = runtime_settings(
        max_num_seqs=1,
        num_threads=threads,
        kernels=kernels,
        device=device,
        adapter=adapter,
        max_model_len=max_model_len,
        prefix_cache_bytes=0,
    )
    with Engine.open(artifact, settings) as engine:
        request = ChatRequest(messages_of(text, system), sampling=given, guide=lambda: form, thinking=thinking)
        params = request.params(engine.default_sampling)
        if chat is None:
            token_ids, reader, guide = engine.tokenizer.encode(text), PartReader(None), form
        else:
            rendered = request.render(engine)
            token_ids, reader = rendered.token_ids, PartReader(rendered.parser())
            guide = request.guide_of(rendered)
        params = dataclasses.replace(params, guide=guide)
        started = time.perf_counter()
        first: float | None = None
        printer = AnswerPrinter()
        for output in engine.generate(token_ids, params, adapter=name_of(adapter)):
            first = first or time.perf_counter()
            for part in reader.read(output):
                printer.print(part)
    if output.finish_reason is FinishReason.ERROR:
        raise CommandError(f"the model failed ({output.error}): export the checkpoint again, or report this")
    if output.finish_reason is FinishReason.GUIDE:
        raise CommandError(f"{output.error}: give a simpler form")
    if stats and first is not None:
        print_stats(output, first - started, time.perf_counter() - first)
    if form is not None and output.finish_reason is FinishReason.LENGTH:
        limit = "--max-tokens" if "max_tokens" in given else "--max-model-len"
        message = f"the answer was cut off after {output.num_generated_tokens} tokens and does not have its form"
        print(f"qwonnx: {message}: raise {limit}", file=sys.stderr)
        raise typer.Exit(CUT_OFF)


class AnswerPrinter:
    """Prints the parts of an answer: reasoning dim on stderr, the answer on stdout, where it ends with a line break."""

    def __init__(self) -> None:
        self._errors = Console(stderr=True, highlight=False)
        self._thinking = False
        self._is_in_a_line = False

    def print(self, part: Part) -> None:
        match part:
            case ReasoningDelta(text):
                self._thinking = True
                self._errors.print(text.translate(CONTROLS), style="dim", end="", markup=False, soft_wrap=True)
            case ContentDelta(text):
                self._end_thinking(followed=True)
                self._answer(text)
            case End():
                self._end_thinking(followed=False)
                if self._is_in_a_line:
                    self._answer("\n")

    def _end_thinking(self, *, followed: bool) -> None:
        if self._thinking:
            self._errors.print("\n" if followed else "")
        self._thinking = False

    def _answer(self, text: str) -> None:
        if text:
            self._is_in_a_line = not text.endswith("\n")
        sys.stdout.write(text.translate(CONTROLS) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def form_of(json_schema: Path | None, regex: str | None) -> Guide | None:
    """The form of the answer that the options ask for.

    Raises:
        CommandError: the file is not a JSON schema.
        InvalidRequestError: the schema or the expression is too large.
    """
    if regex is not None:
        return Guide.regex(regex, "--regex")
    if json_schema is None:
        return None
    try:
        schema = json.loads(read_text(json_schema))
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{json_schema} is not JSON ({error}): give a JSON schema") from error
    if not isinstance(schema, (dict, bool)):
        raise CommandError(f"{json_schema} is not a JSON schema: give an object, true or false")
    return Guide.json_schema(schema, "--json-schema")


def messages_of(text: str, system: str | None) -> list[dict[str, Any]]:
    """A conversation with one question, as chat templates take it."""
    spoken: list[dict[str, Any]] = [{"role": "user", "content": text}]
    return spoken if system is None else [{"role": "system", "content": system}, *spoken]


def _text(given: str | None) -> str:
    if given != "-":
        return given or ""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise CommandError("stdin is not UTF-8 text: convert it") from error


def print_stats(output: RequestOutput, to_first: float, after: float) -> None:
    """Print token counts and speed to stderr, from the last output and the seconds before and after the first token."""
    decoded = output.num_generated_tokens - 1
    speed = f", then {decoded / after:.1f} tokens/s" if decoded > 0 and after > 0 else ""
    reason = output.finish_reason.value if output.finish_reason is not None else "-"
    line = (
        f"{output.num_prompt_tokens} prompt tokens, first token after {to_first:.2f} s "
        f"({output.num_prompt_tokens / to_first:.0f} tokens/s){speed}; "
        f"{output.num_generated_tokens} tokens, finish reason {reason}"
    )
    print(line, file=sys.stderr)
