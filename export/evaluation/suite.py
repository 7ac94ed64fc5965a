"""A suite of questions with known answers: one JSON object a line, in a file of limited size that is checked.

    {"task": "glossary", "messages": [...], "expected": {...}, "tools": [...], "thinking": false, "language": "Thai"}

`messages` and `tools` are as in a chat completion, and `expected` is the right message of the assistant. The last three
are optional. Arguments of tool calls are objects, or their JSON text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from qwonnx.export.errors import EvaluationError
from qwonnx.runtime.artifact.strict_json import StrictJsonError, parse_object, quoted
from qwonnx.runtime.quantities import bytes_text

MAX_BYTES = 512 << 20
MAX_LINE_BYTES = 32 << 20
MAX_LINES = 100_000

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class _Function(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: dict[str, Any] | str


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    function: _Function
    type: Literal["function"] = "function"
    id: str | None = None


class _Expected(msgspec.Struct, forbid_unknown_fields=True):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] = []
    role: Literal["assistant"] = "assistant"


class _Message(msgspec.Struct):
    """The chat template checks the other fields of a message."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    task: Name
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    expected: _Expected
    tools: list[dict[str, Any]] = []
    thinking: bool = False
    language: Name | None = None


@dataclass(frozen=True, slots=True)
class ExpectedCall:
    """An expected tool call: the function's name, and its arguments as JSON values."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """One line of a suite.

    line: its number in the file, from 1.
    language: of the answer, if the suite says.
    messages, tools: in the form of a chat template's input.
    expected: the right message, in the same form; an answer is compared with content and calls.
    """

    line: int
    task: str
    language: str | None
    thinking: bool
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    expected: dict[str, Any]
    content: str
    calls: tuple[ExpectedCall, ...]

    @property
    def pictures(self) -> list[dict[str, Any]]:
        """The parts of its messages that are not text, in order."""
        parts = (
            part for message in self.messages if isinstance(message.get("content"), list) for part in message["content"]
        )
        return [part for part in parts if "text" not in part]


@dataclass(frozen=True, slots=True)
class Suite:
    """A file's questions, in its order, and the file's name and hash."""

    name: str
    sha256: str
    questions: tuple[Question, ...]


def read_suite(path: Path) -> Suite:
    """Read and check a whole file; blank lines are skipped.

    Raises:
        EvaluationError: it cannot be read, is empty or too large, or a line is not a question.
    """
    digest = hashlib.sha256()
    questions = []
    for number, line in _lines(path):
        digest.update(line)
        if line.strip():
            try:
                questions.append(_question(number, line))
            except StrictJsonError as error:
                raise EvaluationError(
                    f"line {number} of {path} is not a question ({error}): correct or remove it"
                ) from error
    if not questions:
        raise EvaluationError(f"{path} has no questions: give a file with one JSON object a line")
    return Suite(path.name, digest.hexdigest(), tuple(questions))


def choose(questions: Sequence[Question], tasks: Sequence[str], limit: int | None) -> list[Question]:
    """Questions of the named tasks, or of all; at most `limit`, shared evenly by tasks and spread over a task's lines.

    Raises:
        EvaluationError: the suite does not have one of the tasks.
    """
    by_task: dict[str, list[Question]] = {}
    for question in questions:
        by_task.setdefault(question.task, []).append(question)
    if unknown := next((task for task in tasks if task not in by_task), None):
        raise EvaluationError(f"the suite has no task {quoted(unknown)}: choose from {', '.join(sorted(by_task))}")
    groups = sorted((group for task, group in by_task.items() if not tasks or task in tasks), key=len)
    chosen: list[Question] = []
    for index, group in enumerate(groups):
        room = len(group) if limit is None else min(len(group), (limit - len(chosen)) // (len(groups) - index))
        chosen += [group[place * len(group) // room] for place in range(room)]
    return sorted(chosen, key=lambda question: question.line)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            number, size = 0, 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number, size = number + 1, size + len(line)
                if len(line) > MAX_LINE_BYTES:
                    raise EvaluationError(f"line {number} of {path} exceeds {bytes_text(MAX_LINE_BYTES)}: shorten it")
                if size > MAX_BYTES or number > MAX_LINES:
                    raise EvaluationError(
                        f"{path} exceeds {MAX_LINES:,} lines or {bytes_text(MAX_BYTES)}: split it into several files"
                    )
                yield number, line
    except OSError as error:
        raise EvaluationError(f"cannot read {path} ({error.strerror}): give a suite's file") from error


def _question(number: int, line: bytes) -> Question:
    """The question of a line.

    Raises:
        StrictJsonError: it is not a question; the message is the reason.
    """
    document = parse_object(line)
    try:
        checked = msgspec.convert(document, _Line)
    except msgspec.ValidationError as error:
        raise StrictJsonError(str(error)) from error
    for name in (checked.task, checked.language):
        if name is not None and not name.isprintable():
            raise StrictJsonError(f"{quoted(name)} is not a printable name")
    return Question(
        line=number,
        task=checked.task,
        language=checked.language,
        thinking=checked.thinking,
        messages=document["messages"],
        tools=checked.tools,
        expected={"role": "assistant", "content": "", **document["expected"]},
        content=(checked.expected.content or "").strip(),
        calls=tuple(ExpectedCall(call.function.name, _arguments(call)) for call in checked.expected.tool_calls),
    )


def _arguments(call: _Call) -> dict[str, Any]:
    given = call.function.arguments
    return parse_object(given.encode()) if isinstance(given, str) else given
