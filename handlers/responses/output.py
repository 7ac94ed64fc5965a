"""Builds the output items of one response from the parts of the answer, and the events that tell of them.

A whole answer takes the items, a streamed one the events as well: both are made by the same steps, so an item has the
same id and content in deltas, in output_item.done and in the final output.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET

from qwonnx.handlers.chat.parts import Begun, ContentLogprobs, EndReason, Resumed
from qwonnx.handlers.openai.chat_objects import LogprobToken
from qwonnx.handlers.openai.logprobs import LogprobsWriter
from qwonnx.handlers.responses import events, sealed_reasoning
from qwonnx.handlers.responses.custom_input import CustomInput
from qwonnx.handlers.responses.events import Event
from qwonnx.handlers.responses.objects import (
    CustomToolCallItem,
    FunctionCallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    SummaryText,
)
from qwonnx.handlers.responses.tools import Callee, OfferedTools
from qwonnx.runtime.sampling.entropy import fresh_id
from qwonnx.runtime.text.answer_events import (
    ArgumentsDelta,
    CallClosed,
    CallOpened,
    ContentDelta,
    ReasoningDelta,
)
from qwonnx.runtime.text.answer_events import Event as AnswerEvent


class Output:
    """The items of one response.

    Args:
        tools: of the request.
        encrypted: items of reasoning also have encrypted_content.
        logprobs: writes the log probabilities of texts; None: texts have none.
    """

    def __init__(self, tools: OfferedTools, *, encrypted: bool, logprobs: LogprobsWriter | None = None) -> None:
        self._tools = tools
        self._logprobs = logprobs
        self._coming: list[LogprobToken] = []  # of tokens whose text comes next
        self._encrypted = encrypted
        self._done: list[OutputItem] = []
        self._open: _Reasoning | _Message | _FunctionCall | _CustomCall | None = None

    @property
    def items(self) -> list[OutputItem]:
        """The items so far; the last one may be open, and is then incomplete."""
        return self._done if self._open is None else [*self._done, self._open.item("incomplete")]

    def add(self, part: Begun | Resumed | ContentLogprobs | AnswerEvent) -> Iterator[Event]:
        """The events of the next part. They must be consumed.

        A call that another request has begun is an item with the rest of its arguments.
        """
        match part:
            case ReasoningDelta(text):
                if text:
                    yield from self._opened(_Reasoning)
                    yield from self._delta(text)
            case ContentDelta(text):
                if text:
                    yield from self._opened(_Message)
                    assert isinstance(self._open, _Message)
                    self._open.logprobs, self._coming = self._coming, []
                    yield from self._delta(text)
            case ContentLogprobs(logprobs):
                if self._logprobs is not None:
                    self._coming.append(self._logprobs.token(logprobs))
            case CallOpened(name) | Resumed(_, str(name)):
                yield from self._closed("completed")
                self._coming = []  # of the call's tags, which are not text
                callee = self._tools.callee(name)
                yield from self._begun(_CustomCall if callee.is_custom else _FunctionCall, callee)
                if isinstance(part, Resumed) and isinstance(self._open, _CustomCall):
                    self._open.go_on()
            case ArgumentsDelta(text):
                self._coming = []
                if text:
                    yield from self._delta(text)
            case CallClosed():
                self._coming = []
                yield from self._closed("completed")
            case Begun() | Resumed():
                pass

    def end(self, reason: EndReason) -> Iterator[Event]:
        """The events of the end. A successful answer without text and calls has an empty message."""
        yield from self._closed("incomplete" if reason is EndReason.LENGTH else "completed")
        if reason is not EndReason.LENGTH and all(isinstance(item, ReasoningItem) for item in self._done):
            yield from self._opened(_Message)
            yield from self._closed("completed")

    def _opened(self, kind: type[_Reasoning] | type[_Message]) -> Iterator[Event]:
        """Open an item of this kind, unless it is open."""
        if not isinstance(self._open, kind):
            yield from self._closed("completed")
            yield from self._begun(kind, None)

    def _begun(self, kind: type[_AnyOpen], callee: Callee | None) -> Iterator[Event]:
        self._open = kind(len(self._done), callee, encrypted=self._encrypted)
        yield events.ItemAdded(output_index=len(self._done), item=self._open.item("in_progress"))
        yield from self._open.beginning()

    def _delta(self, text: str) -> Iterator[Event]:
        assert self._open is not None, "a delta belongs to an open item"
        yield from self._open.delta(text)

    def _closed(self, status: ItemStatus) -> Iterator[Event]:
        opened, self._open = self._open, None
        if opened is None:
            return
        yield from opened.ending()
        item = opened.item(status)
        self._done.append(item)
        yield events.ItemDone(output_index=len(self._done) - 1, item=item)


class _OpenItem:
    """An item that grows.

    Args:
        index: of the item in the output.
        callee: of a call.
        encrypted: see Output.
    """

    prefix: str

    def __init__(self, index: int, callee: Callee | None, *, encrypted: bool) -> None:
        self._id = f"{self.prefix}_{fresh_id()}"
        self._index = index
        self._encrypted = encrypted
        self._texts: list[str] = []

    @property
    def _text(self) -> str:
        return "".join(self._texts)


class _Reasoning(_OpenItem):
    prefix = "rs"

    def item(self, status: ItemStatus) -> ReasoningItem:
        text = self._text
        encrypted = sealed_reasoning.sealed(text) if text and self._encrypted else UNSET
        summary, content = ([SummaryText(text)], [ReasoningText(text)]) if text else ([], [])
        return ReasoningItem(self._id, summary, content, status, encrypted)

    def beginning(self) -> Iterator[Event]:
        yield events.PartAdded(item_id=self._id, output_index=self._index, part=ReasoningText(""))
        yield events.SummaryPartAdded(item_id=self._id, output_index=self._index, part=SummaryText(""))

    def delta(self, text: str) -> Iterator[Event]:
        self._texts.append(text)
        yield events.ReasoningDelta(item_id=self._id, output_index=self._index, delta=text)
        yield events.SummaryDelta(item_id=self._id, output_index=self._index, delta=text)

    def ending(self) -> Iterator[Event]:
        item_id, index, text = self._id, self._index, self._text
        yield events.ReasoningDone(item_id=item_id, output_index=index, text=text)
        yield events.PartDone(item_id=item_id, output_index=index, part=ReasoningText(text))
        yield events.SummaryDone(item_id=item_id, output_index=index, text=text)
        yield events.SummaryPartDone(item_id=item_id, output_index=index, part=SummaryText(text))


class _Message(_OpenItem):
    """logprobs: of the tokens of the next delta."""

    prefix = "msg"

    def __init__(self, index: int, callee: Callee | None, *, encrypted: bool) -> None:
        super().__init__(index, callee, encrypted=encrypted)
        self.logprobs: list[LogprobToken] = []
        self._all_logprobs: list[LogprobToken] = []

    def item(self, status: ItemStatus) -> MessageItem:
        content = [] if status == "in_progress" else [self._part()]
        return MessageItem(self._id, content, status)

    def beginning(self) -> Iterator[Event]:
        yield events.PartAdded(item_id=self._id, output_index=self._index, part=OutputText(""))

    def delta(self, text: str) -> Iterator[Event]:
        self._texts.append(text)
        logprobs, self.logprobs = self.logprobs, []
        self._all_logprobs += logprobs
        yield events.TextDelta(item_id=self._id, output_index=self._index, delta=text, logprobs=logprobs)

    def ending(self) -> Iterator[Event]:
        part = self._part()
        done = events.TextDone(item_id=self._id, output_index=self._index, text=part.text, logprobs=part.logprobs)
        yield done
        yield events.PartDone(item_id=self._id, output_index=self._index, part=part)

    def _part(self) -> OutputText:
        return OutputText(self._text, logprobs=self._all_logprobs)


class _OpenCall(_OpenItem):
    def __init__(self, index: int, callee: Callee | None, *, encrypted: bool) -> None:
        super().__init__(index, callee, encrypted=encrypted)
        assert callee is not None, "a call has a name"
        self._call_id = f"call_{fresh_id()[:24]}"
        self._name = callee.name
        self._namespace = UNSET if callee.namespace is None else callee.namespace

    def beginning(self) -> Iterator[Event]:
        return iter(())


class _FunctionCall(_OpenCall):
    prefix = "fc"

    def item(self, status: ItemStatus) -> FunctionCallItem:
        return FunctionCallItem(self._id, self._call_id, self._name, self._text, status, self._namespace)

    def delta(self, text: str) -> Iterator[Event]:
        self._texts.append(text)
        yield events.ArgumentsDelta(item_id=self._id, output_index=self._index, delta=text)

    def ending(self) -> Iterator[Event]:
        yield events.ArgumentsDone(item_id=self._id, output_index=self._index, name=self._name, arguments=self._text)


class _CustomCall(_OpenCall):
    prefix = "ctc"

    def __init__(self, index: int, callee: Callee | None, *, encrypted: bool) -> None:
        super().__init__(index, callee, encrypted=encrypted)
        self._input = CustomInput()

    def item(self, status: ItemStatus) -> CustomToolCallItem:
        return CustomToolCallItem(self._id, self._call_id, self._name, self._input.text, status, self._namespace)

    def go_on(self) -> None:
        """Another request has begun the call."""
        self._input = CustomInput(goes_on=True)

    def delta(self, text: str) -> Iterator[Event]:
        yield from self._more(self._input.push(text))

    def ending(self) -> Iterator[Event]:
        yield from self._more(self._input.close())
        yield events.InputDone(item_id=self._id, output_index=self._index, input=self._input.text)

    def _more(self, text: str) -> Iterator[Event]:
        if text:
            yield events.InputDelta(item_id=self._id, output_index=self._index, delta=text)


_AnyOpen = _Reasoning | _Message | _FunctionCall | _CustomCall
