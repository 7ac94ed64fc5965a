"""LLM: AsyncLLM for programs without an event loop. It runs one in a thread."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NoReturn, TypeVar, overload

from qwonnx.handlers.chat.parts import Part
from qwonnx.handlers.library.answer import Answer
from qwonnx.handlers.library.async_llm import AsyncLLM
from qwonnx.handlers.library.conversation import Messages
from qwonnx.handlers.library.loop_thread import THREADS, LoopThread
from qwonnx.handlers.library.opening import Place
from qwonnx.handlers.library.stream import AsyncAnswerStream
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import EngineClosedError
from qwonnx.runtime.text.answer_events import ContentDelta

_Result = TypeVar("_Result")


class AnswerStream:
    """Pieces of an answer's text, without the reasoning; `answer` is the whole answer.

    Leaving it, by `with`, close() or because nothing refers to it any more, ends the generation. LLM.chat() makes it.
    """

    def __init__(self, stream: AsyncAnswerStream, loop: LoopThread, model: object) -> None:
        self._stream, self._loop, self._model = stream, loop, model  # a model that nothing refers to closes itself

    def __iter__(self) -> Iterator[str]:
        for part in self.parts():
            if isinstance(part, ContentDelta) and part.text:
                yield part.text

    def parts(self) -> Iterator[Part]:
        """All parts that are still to come; see AsyncAnswerStream.parts()."""
        while (part := _run(self._loop, self._stream.next_part)) is not None:
            yield part

    @property
    def answer(self) -> Answer:
        """The whole answer. Waits until it has come. Raises as AsyncAnswerStream.answer()."""
        return _run(self._loop, self._stream.answer)

    def close(self) -> None:
        """End the generation, if it has not ended."""
        _run(self._loop, self._stream.aclose)

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class LLM:
    """A model that answers chats and continues texts.

        with LLM("qwen-int4") as llm:
            print(llm.chat("What is Germany called in Swahili?"))

    Args:
        model, device, adapter, kernels, progress, settings: see AsyncLLM.

    Any thread may use it. It closes itself as a context manager, and when the program ends.

    Raises:
        as AsyncLLM.
    """

    def __init__(
        self,
        model: Place,
        *,
        device: str | None = None,
        adapter: Place | Mapping[str, Place] | None = None,
        kernels: str | None = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> None:
        self._llm = AsyncLLM(model, device=device, adapter=adapter, kernels=kernels, progress=progress, **settings)
        self._loop = LoopThread()
        self._closing = weakref.finalize(self, _close, self._llm.engine, self._loop)

    @property
    def engine(self) -> Engine:
        """See AsyncLLM.engine."""
        return self._llm.engine

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        system: str | None = None,
        tools: Iterable[Any] | None = None,
        tool_choice: str | None = None,
        schema: Any = None,
        regex: str | None = None,
        thinking: bool | None = None,
        thinking_budget: int | None = None,
        logprobs: int | None = None,
        adapter: str | None = None,
        stream: Literal[False] = False,
        **sampling: Any,
    ) -> Answer: ...

    @overload
    def chat(self, messages: Messages, *, stream: Literal[True], **options: Any) -> AnswerStream: ...

    def chat(self, messages: Messages, *, stream: bool = False, **options: Any) -> Answer | AnswerStream:
        """Answer a conversation.

        Args:
            messages: a user's text, or messages as a chat completion has them; answers may stand among them.
            stream: return pieces as they come, in an AnswerStream.
            options: see AsyncLLM.chat(): system, tools, tool_choice, schema, regex, thinking, thinking_budget,
                logprobs, adapter; and the sampling parameters of docs/sampling.md: temperature, max_tokens, seed, ...

        Raises:
            as AsyncLLM.chat().
        """
        if stream:
            begun = _run(self._loop, lambda: self._llm.chat(messages, stream=True, **options))
            return AnswerStream(begun, self._loop, self)
        answer: Answer = _run(self._loop, lambda: self._llm.chat(messages, **options))
        return answer

    @overload
    def generate(self, prompts: str, **options: Any) -> Answer: ...

    @overload
    def generate(self, prompts: Sequence[str], **options: Any) -> list[Answer]: ...

    def generate(self, prompts: str | Sequence[str], **options: Any) -> Answer | list[Answer]:
        """Continue a text, or many at once, or answer many questions (chat=True).

        Args:
            prompts: a text, or a list of texts.
            options: see AsyncLLM.generate().

        Returns:
            an answer for a text; a list in the order of the prompts for a list.

        Raises:
            as AsyncLLM.generate().
        """
        return _run(self._loop, lambda: self._llm.generate(prompts, **options))

    def embeddings(self, *_: object, **__: object) -> NoReturn:
        """There are none: see AsyncLLM.embeddings()."""
        self._llm.embeddings()

    def close(self) -> None:
        """End running answers and free the model; idempotent."""
        self._llm.mark_closed()
        self._closing()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return self._llm.described(type(self).__name__)


def _run(loop: LoopThread, work: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
    """
    Raises:
        EngineClosedError: the model was closed, and its thread with it.
    """
    if loop.is_closed:
        raise EngineClosedError("the model is closed: make a new LLM")
    return loop.run(work())


def _close(engine: Engine, loop: LoopThread) -> None:
    """Close both. A garbage collection may call this on any thread, also on one that has to end."""
    if threading.current_thread().name.startswith(THREADS):
        threading.Thread(target=_close, args=(engine, loop), name="closing").start()
        return
    engine.close()
    loop.close()
