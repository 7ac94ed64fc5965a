"""AsyncLLM: a model that answers chats and continues texts, on the caller's event loop."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NoReturn, overload

from qwonnx.handlers.chat.answer import begin
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.library.answer import Answer
from qwonnx.handlers.library.conversation import Messages
from qwonnx.handlers.library.errors import in_python_words
from qwonnx.handlers.library.opening import Opened, Place, opened
from qwonnx.handlers.library.progress import ProgressBar
from qwonnx.handlers.library.request import Asked, chat_request, text_request
from qwonnx.handlers.library.stream import AsyncAnswerStream
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import EngineClosedError, InvalidRequestError
from qwonnx.runtime.settings import AUTO

_BURST = 32  # tokens of an answer that nobody looks at before its end


class AsyncLLM:
    """A model, open until it is closed. As an asynchronous context manager it closes itself.

    Args:
        model: an artifact's folder, or the name of a pulled model. A checkpoint (a folder, a GGUF file, a hub
            repository or a URL) is exported into ~/.cache/qwonnx first, or found there.
        device: "cpu", "cuda", "cuda:1", "tensorrt" or "rtx"; None: what the artifact was exported for.
        adapter: a LoRA adapter that answers: its folder, or a URL with #sha256=. Or several by name, which chat()
            chooses from. The artifact must have been exported with --runtime-adapters.
        kernels: "native", "onnxruntime" or "auto".
        progress: show a bar on stderr while a checkpoint is exported; None: on a terminal.
        settings: fields of RuntimeSettings, such as num_threads=4 or memory_bytes="8GB". They override QWONNX_*
            variables.

    Raises:
        SettingsError: a setting is unknown or out of range, or there is no such model.
        ArtifactError, AdapterError, SessionError: the model cannot be opened.
        ExportError: the checkpoint cannot be exported.
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
        self._opened: Opened = opened(
            model, device=device, adapter=adapter, kernels=kernels, progress=progress, settings=settings
        )
        self._is_closed = False
        self._closing = weakref.finalize(self, self._opened.engine.close)  # also when the program ends

    @classmethod
    async def open(cls, model: Place, **options: Any) -> AsyncLLM:
        """As the constructor, which blocks, but in a thread."""
        return await asyncio.to_thread(lambda: cls(model, **options))

    @property
    def engine(self) -> Engine:
        """The engine, for what this class does not offer: tokenizer, metrics, outputs with tokens."""
        return self._opened.engine

    @overload
    async def chat(self, messages: Messages, *, stream: Literal[False] = False, **options: Any) -> Answer: ...

    @overload
    async def chat(self, messages: Messages, *, stream: Literal[True], **options: Any) -> AsyncAnswerStream: ...

    async def chat(
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
        stream: bool = False,
        **sampling: Any,
    ) -> Answer | AsyncAnswerStream:
        """Answer a conversation.

        Args:
            messages: a user's text, or messages as a chat completion has them; answers may stand among them.
            system: a system message before them.
            tools: Python functions with type hints, or tools as a chat completion has them.
            tool_choice: "auto", "none", "required", or the name of a tool that must be called.
            schema: the form of the answer: a pydantic model, a dataclass, a msgspec.Struct, or a JSON schema.
                Answer.parsed is then its instance.
            regex: an expression that the answer matches as a whole.
            thinking: think before answering; None leaves it to the model.
            thinking_budget: tokens of reasoning at most.
            logprobs: give the log probability of each token, and of so many others in its place: 0 to 20.
            adapter: the name of the adapter that answers; "" is the model itself, None what the model was opened with.
            stream: return pieces as they come.
            sampling: temperature, max_tokens, stop, seed, ...: docs/sampling.md lists all. The checkpoint recommends
                the others.

        Raises:
            InvalidRequestError: something that is given cannot be obeyed; the message and `param` name it.
            QueueFullError: too many requests wait.
            EngineClosedError: close() was called.
            SessionError: the model failed.
        """
        asked = chat_request(
            messages,
            system=system,
            tools=tools,
            tool_choice=tool_choice,
            schema=schema,
            regex=regex,
            thinking=thinking,
            thinking_budget=thinking_budget,
            logprobs=logprobs,
            sampling=sampling,
        )
        stream_of = await self._begun(asked, adapter, burst=1 if stream else _BURST)
        return stream_of if stream else await _whole(stream_of)

    @overload
    async def generate(self, prompts: str, **options: Any) -> Answer: ...

    @overload
    async def generate(self, prompts: Sequence[str], **options: Any) -> list[Answer]: ...

    async def generate(
        self,
        prompts: str | Sequence[str],
        *,
        chat: bool = False,
        system: str | None = None,
        thinking: bool | None = None,
        schema: Any = None,
        regex: str | None = None,
        logprobs: int | None = None,
        adapter: str | None = None,
        progress: bool | None = None,
        **sampling: Any,
    ) -> Answer | list[Answer]:
        """Continue a text, or many at once: the engine computes them together, at most max_num_seqs at a time.

        Args:
            prompts: texts, continued as they are, without a chat template.
            chat: the texts are questions: each is answered as by chat().
            system, thinking: see chat(); only with `chat`.
            schema, regex, logprobs, adapter, sampling: see chat().
            progress: show a bar on stderr; None: for several prompts, on a terminal.

        Returns:
            an answer for a text; a list in the order of the prompts for a list.

        Raises:
            as chat(). The message names the prompt, and the others are given up.
        """
        if not chat and (system is not None or thinking is not None):
            raise InvalidRequestError("system and thinking need chat=True", "system" if system else "thinking")
        shared: dict[str, Any] = {"schema": schema, "regex": regex, "logprobs": logprobs, "sampling": sampling}
        if chat:
            shared |= {"system": system, "thinking": thinking}
        make = chat_request if chat else text_request
        if isinstance(prompts, str):
            return await _whole(await self._begun(make(prompts, **shared), adapter, burst=_BURST))
        return await self._answers([make(prompt, **shared) for prompt in prompts], adapter, progress)

    def embeddings(self, *_: object, **__: object) -> NoReturn:
        """There are none.

        Raises:
            InvalidRequestError: always.
        """
        message = "a Qwen 3.5 model generates text and has no embeddings: use an embedding model"
        raise InvalidRequestError(message, code="embeddings_not_supported")

    async def close(self) -> None:
        """End running answers and free the model; idempotent."""
        self._is_closed = True
        await asyncio.to_thread(self._closing)

    def mark_closed(self) -> None:
        """Refuse new requests, as after close()."""
        self._is_closed = True

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return self.described(type(self).__name__)

    def described(self, name: str) -> str:
        """What is open, in one line."""
        engine = self.engine
        manifest = engine.artifact.manifest
        facts = [
            repr(str(engine.artifact.folder)),
            f"model={manifest.source.checkpoint!r}",
            f"weights={manifest.quantization.weights!r}",
            f"target={manifest.target!r}",
            *([] if engine.settings.device == AUTO else [f"device={engine.settings.device!r}"]),
            f"kernels={engine.kernels.name!r}",
            f"max_model_len={engine.max_model_len}",
            *([f"adapters={sorted(engine.adapters())}"] if engine.adapters() else []),
            *(["closed"] if self._is_closed else []),
        ]
        return f"{name}({', '.join(facts)})"

    async def _begun(self, asked: Asked, adapter: str | None, *, burst: int, where: str = "") -> AsyncAnswerStream:
        if self._is_closed:
            raise EngineClosedError(f"the model is closed: make a new {type(self).__name__}")
        try:
            begun = await begin(
                self.engine, asked.neutral, adapter=self._opened.adapter if adapter is None else adapter, burst=burst
            )
        except ServiceError as error:
            raise in_python_words(error, where) from error
        return AsyncAnswerStream(begun, asked.builder(self.engine.tokenizer), self)

    async def _answers(self, asked: Sequence[Asked], adapter: str | None, progress: bool | None) -> list[Answer]:
        """Answers to many requests, in their order."""
        answers: list[Answer | None] = [None] * len(asked)
        waiting = iter(enumerate(asked))
        started, num_tokens, num_done = time.monotonic(), 0, 0

        async def work() -> None:
            nonlocal num_tokens, num_done
            for index, each in waiting:
                stream = await self._begun(each, adapter, burst=_BURST, where=f"prompts[{index}]")
                answers[index] = answer = await _whole(stream)
                num_done += 1
                num_tokens += answer.usage.num_generated_tokens
                rate = num_tokens / max(time.monotonic() - started, 1e-9)
                bar.show(f"{num_done} of {len(asked)} answers, {rate:.0f} tokens/s", num_done, len(asked))

        settings = self.engine.settings
        # Some wait in the engine, so that a row that becomes free is used at once.
        at_once = min(2 * settings.max_num_seqs, settings.max_num_seqs + settings.max_queued_requests, len(asked))
        with ProgressBar(progress) as bar:
            workers = [asyncio.create_task(work()) for _ in range(at_once)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return [answer for answer in answers if answer is not None]


async def _whole(stream: AsyncAnswerStream) -> Answer:
    async with stream:
        return await stream.answer()
