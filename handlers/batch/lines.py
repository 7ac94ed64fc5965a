"""OpenAI's batch form: a line is {"custom_id", "method": "POST", "url", "body"}."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from qwonnx.handlers.batch.work import Failure, Refused, Work

_MAX_ID_CHARACTERS = 512
# A shorter beginning is read faster than a request waits for it.
_LEAST_SHARED_CHARACTERS = 256


def read_lines(
    lines: Iterable[bytes], paths: Collection[str], max_line_bytes: int, model: str | None = None
) -> Iterator[Work | Refused]:
    """The work of a file's lines, in their order; blank lines are skipped.

    Args:
        lines: with their ends.
        paths: of routes that a line may name.
        max_line_bytes: of a line.
        model: that answers, whatever model a line names; None: a line must name the served one.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _read(line, number, paths, max_line_bytes, model)


def unique(found: Iterable[Work | Refused]) -> Iterator[Work | Refused]:
    """The same, but a second request with a custom_id is refused. Holds 16 bytes for each id."""
    seen: dict[bytes, int] = {}
    for each in found:
        if isinstance(each, Work):
            digest = hashlib.blake2b(each.custom_id.encode(errors="surrogatepass"), digest_size=16).digest()
            if digest in seen:
                message = f"line {seen[digest]} has the custom_id too: give each line its own"
                yield Refused(each.custom_id, each.number, Failure("duplicate_custom_id", message))
                continue
            seen[digest] = each.number
        yield each


def _read(line: bytes, number: int, paths: Collection[str], max_line_bytes: int, model: str | None) -> Work | Refused:
    if len(line) > max_line_bytes:
        message = f"the line has more than {max_line_bytes} bytes: shorten it, or set QWONNX_MAX_BODY_BYTES"
        return Refused(None, number, Failure("too_large", message))
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Refused(None, number, Failure("invalid_json", f"the line is not JSON ({error})"))
    if not isinstance(document, dict):
        return Refused(None, number, Failure("invalid_line", "the line is not an object"))
    custom_id = document.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_ID_CHARACTERS:
        message = f"custom_id is missing, or not a text of 1 to {_MAX_ID_CHARACTERS} characters"
        return Refused(None, number, Failure("invalid_custom_id", message))
    failure = _failure_of(document, paths)
    if failure is not None:
        return Refused(custom_id, number, failure)
    body = document["body"] if model is None else {**document["body"], "model": model}
    return Work(custom_id, number, document["url"], json.dumps(body).encode(), _group_of(body))


def _failure_of(document: dict[str, Any], paths: Collection[str]) -> Failure | None:
    if document.get("method", "POST") != "POST":
        return Failure("invalid_method", f"method is {document['method']!r}: give POST"[:200])
    url = document.get("url")
    if not isinstance(url, str) or url not in paths:
        return Failure("invalid_url", f"url is {str(url)[:100]!r}: give {' or '.join(sorted(paths))}")
    body = document.get("body")
    if not isinstance(body, dict):
        return Failure("invalid_body", "body is missing, or not an object")
    if body.get("stream"):
        return Failure("invalid_body", "stream is set: the answers of a batch are whole")
    return None


def _group_of(body: dict[str, Any]) -> bytes | None:
    """What names the beginning that this request shares with others: its tools and its first system text."""
    if isinstance(instructions := body.get("instructions"), str):  # of the Responses API
        return group_of([instructions, body.get("tools")])
    messages = body.get("messages") or body.get("input")
    first = messages[0] if isinstance(messages, list) and messages else None
    if not isinstance(first, dict) or first.get("role") not in ("system", "developer"):
        return None
    return group_of([first.get("content"), body.get("tools")])


def group_of(beginning: Any) -> bytes | None:
    """The name of a beginning, from its JSON; None if it is too short to wait for."""
    text = json.dumps(beginning).encode()
    return hashlib.blake2b(text, digest_size=16).digest() if len(text) >= _LEAST_SHARED_CHARACTERS else None
