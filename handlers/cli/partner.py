"""Who answers in `qwonnx chat`: a model in this process, or a running server."""

from __future__ import annotations

import json
import ssl
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Protocol
from urllib.parse import urlsplit

from qwonnx.handlers.chat.parts import Begun, End, EndReason, Part, PartReader, Usage
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason
from qwonnx.runtime.text.answer_events import ContentDelta, ReasoningDelta

_TIMEOUT_SECONDS = 600  # of a long prompt without a sign
_MAX_LINE = 1 << 20


class Partner(Protocol):
    """Answers conversations."""

    @property
    def name(self) -> str:
        """Of the model."""

    def reply(self, messages: Sequence[dict[str, Any]], thinking: bool | None) -> Generator[Part, None, None]:
        """The parts of an answer; closing the generator ends the generation.

        Raises:
            CommandError: there is no answer, or it broke off.
            InvalidRequestError: the conversation is too long, or the model's template refuses it.
        """


class LocalPartner:
    """A model in this process.

    Args:
        engine: open.
        sampling: fields of SamplingParams that differ from the checkpoint's recommendation.
        adapter: the name of the engine's adapter that answers; empty: the model itself.
    """

    def __init__(self, engine: Engine, sampling: Mapping[str, Any], adapter: str = "") -> None:
        self._engine = engine
        self._sampling = sampling
        self._adapter = adapter

    @property
    def name(self) -> str:
        return self._engine.artifact.manifest.source.checkpoint

    def reply(self, messages: Sequence[dict[str, Any]], thinking: bool | None) -> Generator[Part, None, None]:
        request = ChatRequest(list(messages), sampling=self._sampling, thinking=thinking)
        params = request.params(self._engine.default_sampling)
        prompt = request.render(self._engine)
        reader = PartReader(prompt.parser())
        outputs = self._engine.generate(prompt.token_ids, params, snapshot_at=prompt.snapshot_at, adapter=self._adapter)
        has_begun = False
        with closing(outputs):
            for output in outputs:
                if output.finish_reason is FinishReason.ERROR:
                    raise CommandError(f"the model failed ({output.error})")
                if not has_begun:
                    has_begun = True
                    yield reader.begun(output)
                yield from reader.read(output)


class RemotePartner:
    """A running server.

    Args:
        url: of the server, with or without /v1 at its end.
        key: its API key; empty for none.
        sampling: fields of a chat completion.
        model: its name; empty asks the server.

    Raises:
        CommandError: the server does not answer, or refuses.
    """

    def __init__(self, url: str, key: str, sampling: Mapping[str, Any], model: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CommandError(f"--url is {url!r}: give a URL such as http://127.0.0.1:8000")
        self._is_tls, self._address = parts.scheme == "https", parts.netloc.rpartition("@")[2]
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        self._sampling = dict(sampling)
        self._name = model or self._asked("GET", "/v1/models")["data"][0]["id"]

    @property
    def name(self) -> str:
        return self._name

    def reply(self, messages: Sequence[dict[str, Any]], thinking: bool | None) -> Generator[Part, None, None]:
        body: dict[str, Any] = {"model": self._name, "messages": list(messages), "stream": True, **self._sampling}
        body["stream_options"] = {"include_usage": True}
        if thinking is not None:
            body["chat_template_kwargs"] = {"enable_thinking": thinking}
        with closing(self._connection()) as connection:
            response = self._sent(connection, "POST", "/v1/chat/completions", body)
            yield from _parts(_events(response))

    def _asked(self, method: str, path: str) -> Any:
        with closing(self._connection()) as connection:
            return json.loads(self._sent(connection, method, path, None).read())

    def _connection(self) -> HTTPConnection:
        if self._is_tls:
            context = ssl.create_default_context()
            return HTTPSConnection(self._address, timeout=_TIMEOUT_SECONDS, context=context)
        return HTTPConnection(self._address, timeout=_TIMEOUT_SECONDS)

    def _sent(self, connection: HTTPConnection, method: str, path: str, body: Any) -> HTTPResponse:
        try:
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, self._path + path, content, self._headers)
            response = connection.getresponse()
            if response.status == 200:
                return response
            raise CommandError(f"{self._address}: {_message(response.read(_MAX_LINE))}")
        except (OSError, HTTPException) as error:
            raise CommandError(f"{self._address} does not answer ({error})") from error


def _message(body: bytes) -> str:
    """The message of an error's body."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return body[:200].decode(errors="replace") or "it refuses without a reason"


def _events(response: HTTPResponse) -> Iterator[Any]:
    """The JSON of a stream's events."""
    try:
        while line := response.readline(_MAX_LINE):
            data = line.removeprefix(b"data: ")
            if data != line and not data.startswith(b"[DONE]"):
                yield json.loads(data)
    except (OSError, HTTPException, ValueError) as error:
        raise CommandError(f"the answer broke off ({error})") from error


def _parts(events: Iterator[Any]) -> Generator[Part, None, None]:
    """The parts of chat completion chunks."""
    reason = None
    for event in events:
        if "error" in event:
            raise CommandError(str(event["error"].get("message", "the answer broke off")))
        for choice in event["choices"]:
            delta = choice["delta"]
            if text := delta.get("reasoning_content") or delta.get("reasoning"):
                yield ReasoningDelta(text)
            if text := delta.get("content"):
                yield ContentDelta(text)
            reason = choice.get("finish_reason") or reason
        if usage := event.get("usage"):
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            counted = Usage(usage["prompt_tokens"], cached, usage["completion_tokens"], 0)
            yield Begun(counted.num_prompt_tokens, counted.num_cached_tokens)
            yield End(EndReason.LENGTH if reason == "length" else EndReason.STOP, counted)
