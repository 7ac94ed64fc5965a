"""The presets: requests made of documents and questions, of segments and languages, of messages to a service.

Each makes chats whose beginning is shared, and rows with the answer's text beside what it answers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qwonnx.handlers.batch.errors import BatchError
from qwonnx.handlers.batch.lines import group_of
from qwonnx.handlers.batch.work import Failure, Refused, Reply, Row, Work
from qwonnx.runtime.quantities import bytes_text

CHAT_PATH = "/v1/chat/completions"
_MAX_TEXT_BYTES = 64 << 20
_DOCUMENT = (
    "Answer questions about the document below. Use only what it says. If it does not say, answer that it does not.\n\n"
    "<document name={name}>\n{text}\n</document>"
)
_TRANSLATION = (
    "Translate the user's message into {language}. Answer with the translation alone. Keep every tag and placeholder, "
    "such as <b>, </b>, {{0}}, %s or ${{name}}, exactly as it is."
)
# HTML and XLIFF tags, and the placeholders of the usual formats of messages.
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>|\$?\{[^{}\s]{0,60}\}|%(?:\d+\$)?[-+ 0#]*\d*(?:\.\d+)?[sdifgxu@]")


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """Of all requests of a preset. thinking: the model reasons first. Unset sampling is the model's own."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    thinking: bool = False

    def body(self, system: str, user: str) -> bytes:
        """The JSON of a chat with one question."""
        chosen = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        document = {
            "model": self.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "chat_template_kwargs": {"enable_thinking": self.thinking},
            **{name: value for name, value in chosen.items() if value is not None},
        }
        return json.dumps(document).encode()


def questions_about(folder: Path, questions: Sequence[str], options: ChatOptions) -> Iterator[Work | Refused]:
    """Each question about each file of a folder, and of the folders in it. A document is read once.

    Raises:
        BatchError: the folder cannot be read.
    """
    if not folder.is_dir():
        raise BatchError(f"{folder} is not a folder: give one with text files")
    number = 0
    for path in sorted(each for each in folder.rglob("*") if each.is_file() and not _is_hidden(each, folder)):
        name = path.relative_to(folder).as_posix()
        text = _text_of(path)
        system = None if isinstance(text, Failure) else _DOCUMENT.format(name=json.dumps(name), text=text)
        group = None if system is None else group_of(system)
        for index, question in enumerate(questions, 1):
            number += 1
            custom_id = f"{name}#{index}"
            if system is None:
                assert isinstance(text, Failure)
                yield Refused(custom_id, number, text)
                continue
            row = partial(_row, {"document": name, "question": question}, "answer")
            yield Work(custom_id, number, CHAT_PATH, options.body(system, question), group, row)


def translations(lines: Iterable[bytes], languages: Sequence[str], options: ChatOptions) -> Iterator[Work | Refused]:
    """Each segment in each language.

    An answer that has other tags than its segment is asked for again, and at last refused.

    Args:
        lines: a text each, or an object with "custom_id" and "text".
        languages: as a person names them: "German", "pt-BR".
        options: of the requests.
    """
    for segment in _texts(lines):
        for language in languages:
            if isinstance(segment, Refused):
                yield segment
                break
            system = _TRANSLATION.format(language=language)
            row = partial(_row, {"segment": segment.text, "language": language}, "translation")
            body = options.body(system, segment.text)
            check = partial(_tags_kept, segment.text)
            custom_id = f"{segment.custom_id}:{language}"
            yield Work(custom_id, segment.number, CHAT_PATH, body, group_of(system), row, check)


def messages_to(system: str, lines: Iterable[bytes], options: ChatOptions) -> Iterator[Work | Refused]:
    """Each message, after one system prompt.

    Args:
        system: what the service is and does.
        lines: a text each, or an object with "custom_id" and "text".
        options: of the requests.
    """
    group = group_of(system)
    for message in _texts(lines):
        if isinstance(message, Refused):
            yield message
            continue
        row = partial(_row, {"message": message.text}, "answer")
        yield Work(message.custom_id, message.number, CHAT_PATH, options.body(system, message.text), group, row)


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        BatchError: it cannot be read, or has none.
    """
    text = _text_of(path)
    if isinstance(text, Failure):
        raise BatchError(f"{path}: {text.message}")
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise BatchError(f"{path} has no lines: write one in each line")
    return found


def text_of(path: Path) -> str:
    """A text file.

    Raises:
        BatchError: it cannot be read, or is empty.
    """
    text = _text_of(path)
    if isinstance(text, Failure):
        raise BatchError(f"{path}: {text.message}")
    if not text.strip():
        raise BatchError(f"{path} is empty: give a file with text")
    return text


@dataclass(frozen=True, slots=True)
class _Text:
    custom_id: str
    number: int
    text: str


def _texts(lines: Iterable[bytes]) -> Iterator[_Text | Refused]:
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            yield Refused(None, number, Failure("not_text", "the line is not UTF-8 text"))
            continue
        if text.startswith("{"):
            yield _named(text, number)
        elif text:
            yield _Text(str(number), number, text)


def _named(line: str, number: int) -> _Text | Refused:
    try:
        document: Any = json.loads(line)
    except (ValueError, RecursionError):
        return _Text(str(number), number, line)  # a text that begins with a placeholder
    custom_id, text = document.get("custom_id", str(number)), document.get("text")
    if not isinstance(custom_id, str) or not custom_id or not isinstance(text, str) or not text.strip():
        return Refused(None, number, Failure("invalid_line", 'the object needs "text", and "custom_id" as a text'))
    return _Text(custom_id, number, text)


def _row(about: Row, name: str, reply: Reply) -> Row:
    choice = reply.body["choices"][0]
    return {**about, name: reply.text, "finish_reason": choice["finish_reason"], "usage": reply.body["usage"]}


def _tags_kept(segment: str, reply: Reply) -> Failure | None:
    wanted, found = Counter(_TAG.findall(segment)), Counter(_TAG.findall(reply.text))
    if wanted == found:
        return None
    odd = sorted(((wanted - found) + (found - wanted)).keys())
    return Failure("tags_changed", f"the translation has not kept {', '.join(odd[:5])}: {reply.text[:200]!r}")


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _text_of(path: Path) -> str | Failure:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_TEXT_BYTES + 1)
    except OSError as error:
        return Failure("unreadable", f"the file cannot be read ({error.strerror})")
    if len(content) > _MAX_TEXT_BYTES:
        return Failure("too_large", f"the file has more than {bytes_text(_MAX_TEXT_BYTES)}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Failure("not_text", "the file is not UTF-8 text: convert it")
