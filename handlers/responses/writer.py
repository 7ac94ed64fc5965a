"""Writes one answer as a response object, or as the events of one."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable

import msgspec
from msgspec import UNSET

from qwonnx.handlers.chat.parts import End, EndReason, Part, Usage
from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.http import sse
from qwonnx.handlers.openai.logprobs import LogprobsWriter
from qwonnx.handlers.responses import events
from qwonnx.handlers.responses.answer_size import AnswerSize
from qwonnx.handlers.responses.events import Event
from qwonnx.handlers.responses.objects import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ReasoningEcho,
    ResponseError,
    ResponseObject,
    ResponseUsage,
    TextEcho,
)
from qwonnx.handlers.responses.output import Output
from qwonnx.handlers.responses.protocol import ENCRYPTED_REASONING, TextFormat
from qwonnx.handlers.responses.request import Understood
from qwonnx.runtime.sampling.entropy import fresh_id


class ResponseWriter:
    """An AnswerWriter.

    Args:
        request: the request.
        model: the model's name in the answer.
        logprobs: writes the log probabilities of texts; None: they have none.
        keep: called with the id and the JSON text of each item of a response that has ended, before its client knows
            it; None: nothing is kept.
    """

    keep_alive = sse.COMMENT

    def __init__(
        self,
        request: Understood,
        model: str,
        logprobs: LogprobsWriter | None = None,
        keep: Callable[[str, bytes], None] | None = None,
    ) -> None:
        self.id = f"resp_{fresh_id()}"
        self._response = _begun(self.id, request, model)
        encrypted = ENCRYPTED_REASONING in (request.body.include or ())
        self._output = Output(request.tools, encrypted=encrypted, logprobs=logprobs)
        self._logprobs = logprobs
        self._keep = keep
        self._num_events = 0
        self._size: AnswerSize | None = None

    def piece(self, part: Part, *, stream: bool) -> bytes:
        """What this part adds to the answer, with what later events repeat of it."""
        if isinstance(part, End):
            return b""
        if self._size is None:
            self._size = AnswerSize(self._response, self._logprobs, stream=stream)
        return self._size.piece(part)

    async def whole(self, parts: AsyncIterator[Part]) -> bytes:
        """A response.

        Raises:
            ServiceError: raised by `parts`.
        """
        end: End | None = None
        async for part in parts:
            if isinstance(part, End):
                end = part
            else:
                for _ in self._output.add(part):
                    pass
        assert end is not None, "an answer without an end raises"
        for _ in self._output.end(end.reason):
            pass
        return msgspec.json.encode(self._ended(end))

    async def events(self, parts: AsyncIterator[Part]) -> AsyncGenerator[bytes, None]:
        """The events; the last one is response.completed, response.incomplete or response.failed."""
        yield self._encoded([events.Created(response=self._response), events.InProgress(response=self._response)])
        try:
            async for part in parts:
                if not isinstance(part, End):
                    encoded = self._encoded(self._output.add(part))
                    if encoded:
                        yield encoded
                    continue
                yield self._encoded(self._output.end(part.reason))
                ended = self._ended(part)
                is_cut = part.reason is EndReason.LENGTH
                last = events.Incomplete(response=ended) if is_cut else events.Completed(response=ended)
                yield self._encoded([last])
                return  # at once: the client leaves when it has this event
        except ServiceError as error:
            yield self._encoded([events.Failed(response=self._failed(error))])

    def _encoded(self, given: Iterable[Event]) -> bytes:
        """Events as bytes, numbered."""
        encoded = []
        for event in given:
            event.sequence_number = self._num_events
            self._num_events += 1
            encoded.append(sse.named_event(events.name_of(event), event))
        return b"".join(encoded)

    def _ended(self, end: End) -> ResponseObject:
        is_cut = end.reason is EndReason.LENGTH
        items = self._output.items
        if self._keep is not None:
            for item in items:
                self._keep(item.id, msgspec.json.encode(item))
        return msgspec.structs.replace(
            self._response,
            status="incomplete" if is_cut else "completed",
            output=items,
            usage=_usage(end.usage),
            completed_at=None if is_cut else int(time.time()),
            incomplete_details=IncompleteDetails() if is_cut else None,
            continuation=end.continuation or UNSET,
        )

    def _failed(self, error: ServiceError) -> ResponseObject:
        told = ResponseError("server_error", error.message)
        if error.kind is ErrorKind.INVALID:
            told.code = "invalid_prompt"
        elif error.kind is ErrorKind.BUSY:
            told.code = "rate_limit_exceeded"
        return msgspec.structs.replace(self._response, status="failed", output=self._output.items, error=told)


def _begun(response_id: str, request: Understood, model: str) -> ResponseObject:
    body = request.body
    reasoning, text = body.reasoning, body.text
    asked_format = None if text is None else text.format
    verbosity = None if text is None else text.verbosity
    choice = body.tool_choice
    return ResponseObject(
        id=response_id,
        created_at=int(time.time()),
        model=model,
        status="in_progress",
        output=[],
        usage=None,
        completed_at=None,
        error=None,
        incomplete_details=None,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        reasoning=ReasoningEcho() if reasoning is None else ReasoningEcho(reasoning.effort, reasoning.summary),
        temperature=body.temperature,
        text=TextEcho(asked_format or TextFormat(), verbosity or UNSET),
        tool_choice="auto" if choice is None else choice,
        tools=list(request.tools.given),
        top_p=body.top_p,
        metadata=body.metadata or {},
        user=body.user,
        safety_identifier=body.safety_identifier,
        prompt_cache_key=body.prompt_cache_key,
        top_logprobs=body.top_logprobs or 0,
    )


def _usage(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        usage.num_prompt_tokens,
        usage.num_generated_tokens,
        usage.num_prompt_tokens + usage.num_generated_tokens,
        InputTokensDetails(usage.num_cached_tokens),
        OutputTokensDetails(usage.num_reasoning_tokens),
    )
