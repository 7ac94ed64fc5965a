"""One chat, from its request to the parts of its answer, independent of an API.

    ChatRequest -> prompt -> guide -> capsules -> engine -> outputs -> parser -> parts

begin() makes every refusal, before the first part. The caller enters the Answer that it returns; leaving the Answer,
for any reason, ends the generation within one step.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType

from msgspec import Struct

from qwonnx.handlers import errors
from qwonnx.handlers.chat.capsule_store import CapsuleStore
from qwonnx.handlers.chat.continuations import Asker, Continuations, Resumed, request_digest, unsupported
from qwonnx.handlers.chat.outputs import OutputStream
from qwonnx.handlers.chat.parts import End, Part, PartReader
from qwonnx.handlers.chat.prompting import prompt_of
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.chat.text_request import TextRequest
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.errors import EngineClosedError, InvalidRequestError, QueueFullError
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.text.detokenizer import Detokenizer
from qwonnx.runtime.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Before the deadline, to store the state of an answer that goes on: hundreds of megabytes to a store in the network.
_STORING_SECONDS = 4.0


async def begin(
    engine: Engine,
    request: ChatRequest | TextRequest,
    *,
    request_id: str | None = None,
    deadline: float | None = None,
    capsules: CapsuleStore | None = None,
    owner: str = "",
    adapter: str = "",
    burst: int = 1,
    keeps_end: bool = True,
    fits: Callable[[Part], bool] | None = None,
    continuing: Continuing | None = None,
) -> Answer:
    """Render a chat, restore its state from a capsule, and submit it.

    Args:
        engine: started.
        request: the chat.
        request_id: unique among live requests; generated if None.
        deadline: the event loop's time at which an unfinished answer ends.
        capsules: store of the states of conversations.
        owner: see Engine.submit().
        adapter: that answers; empty: the model itself.
        burst: see OutputStream.
        keeps_end: the state at the end of the last turn is kept, for the chat's next turn.
        fits: called with each part in order; the answer ends with LENGTH before the first that does not fit.
        continuing: what makes an answer go on in another request after its deadline; None: nothing does.

    Raises:
        ServiceError: 400, 429 or 503: it is refused. Parameters have the names of ChatRequest.sampling; "messages" is
            the conversation, "prompt" the rendered one; a guide has its own names.
    """
    try:
        owner = engine.adapter_owner(adapter, owner)
        params = request.params(engine.default_sampling)
        prompt = await prompt_of(engine, request)
        if prompt.thinking_open:
            params = dataclasses.replace(params, begins_thinking=True, thinking_budget=request.thinking_budget)
        # Schemas take tens of milliseconds; the event loop must not wait.
        guide = None if request.guide is None else await asyncio.to_thread(request.guide_of, prompt)
        if guide is not None:
            guide = await _compiled(engine, guide, deadline, owner)
            params = dataclasses.replace(params, guide=guide)
        if continuing is None and request.continuation is not None:
            raise unsupported()
        digest = b"" if continuing is None else request_digest(prompt.token_ids, params, one_call=request.one_call)
        resumed = None
        if continuing is not None and request.continuation is not None:
            asker = Asker(continuing.key_name, owner)
            take = partial(continuing.continuations.take, engine, request.continuation, prompt.token_ids, digest, asker)
            resumed = await continuing.taken(take)
        saving = None
        if capsules is not None:
            if resumed is None:
                await asyncio.to_thread(capsules.restore, engine, prompt, owner)
            saving = partial(capsules.save, engine, prompt, owner)
        reader = PartReader(prompt.parser(), one_call=request.one_call)
        generated = () if resumed is None else resumed.generated
        try:
            if generated:
                texts = await asyncio.to_thread(texts_of, engine.tokenizer, params, generated)
                await asyncio.to_thread(reader.resume, texts)
            outputs = await OutputStream.submitted(
                engine,
                prompt.token_ids,
                params,
                request_id=request_id,
                snapshot_at=prompt.snapshot_at if keeps_end else prompt.snapshot_at[:-1],
                deadline=deadline if continuing is None else continuing.ends_at(deadline),
                owner=owner,
                adapter=adapter,
                generated=generated,
                keeps=continuing is not None,
                burst=burst,
            )
        except BaseException:
            if resumed is not None and continuing is not None:
                await asyncio.shield(asyncio.to_thread(continuing.continuations.give_back, resumed))
            raise
    except (InvalidRequestError, QueueFullError, EngineClosedError) as error:
        raise errors.refused(error) from error
    offering = None
    if continuing is not None and deadline is not None:
        offering = partial(_offer, continuing, engine, prompt.token_ids, digest, owner, deadline)
    give_back = None
    if continuing is not None and resumed is not None:
        give_back = partial(continuing.continuations.give_back, resumed)
    return Answer(outputs, reader, saving, guide, fits, offering, generated, give_back)


class Continuing(Struct, frozen=True):
    """How answers go on.

    continuations: of the application.
    key_name: of the API key.
    """

    continuations: Continuations
    key_name: str = ""

    def ends_at(self, deadline: float | None) -> float | None:
        """When generation ends, so that its state can be stored before the deadline; times of the event loop."""
        if deadline is None:
            return None
        remaining = max(0.0, deadline - asyncio.get_running_loop().time())
        return deadline - min(_STORING_SECONDS, remaining / 4)

    async def taken(self, take: Callable[[], Resumed]) -> Resumed:
        """What Continuations.take() gives. If this is cancelled, it is given back."""
        taking = asyncio.ensure_future(asyncio.to_thread(take))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(self._give_back)
            raise

    def _give_back(self, taking: asyncio.Future[Resumed]) -> None:
        if not taking.cancelled() and taking.exception() is None:
            taking.get_loop().run_in_executor(None, self.continuations.give_back, taking.result())


async def _offer(
    continuing: Continuing,
    engine: Engine,
    prompt: Sequence[int],
    digest: bytes,
    owner: str,
    deadline: float,
    generated: Sequence[int],
) -> str | None:
    """A token for the rest of an answer, or None."""
    seconds = deadline - asyncio.get_running_loop().time()
    if not generated or seconds <= 0:
        return None
    asker = Asker(continuing.key_name, owner)
    offer = partial(continuing.continuations.offer, engine, prompt, generated, digest, asker, seconds=seconds)
    try:
        return await asyncio.to_thread(offer)
    except EngineClosedError:
        return None


def texts_of(tokenizer: Tokenizer, params: SamplingParams, token_ids: Sequence[int]) -> list[str]:
    """The texts of the outputs that gave these tokens."""
    detokenizer, stop_strings = Detokenizer(tokenizer), params.stop_strings()
    return [stop_strings.push(detokenizer.push(token_id))[0] for token_id in token_ids]


async def _compiled(engine: Engine, guide: Guide, deadline: float | None, owner: str) -> Guide:
    """Wait until a guide is compiled. If the client leaves first or the deadline passes, nothing compiles it further.

    Returns:
        The guide; if it cannot be followed and has another one, that one.

    Raises:
        InvalidRequestError: it cannot be followed.
        ServiceError: 504, the deadline passed.
    """
    try:
        async with asyncio.timeout_at(deadline):
            await asyncio.wrap_future(engine.compile_guide(guide, owner=owner))
    except TimeoutError:
        raise errors.out_of_time() from None
    except InvalidRequestError:
        if guide.otherwise is None:
            raise
        return await _compiled(engine, guide.otherwise, deadline, owner)
    return guide


class Answer:
    """An answer in progress; as an asynchronous context manager it aborts an unfinished generation.

    Args:
        outputs: of the submitted request.
        reader: of these outputs.
        saving: see Answer.saving.
        guide: the form of the answer, or None.
        fits: see begin().
        offering: makes a token for the rest of the answer from its tokens so far.
        generated: tokens of the answer that another request has given.
        give_back: makes the token of this continuation valid again, if the answer does not begin. Blocks.
    """

    def __init__(
        self,
        outputs: OutputStream,
        reader: PartReader,
        saving: Callable[[], None] | None = None,
        guide: Guide | None = None,
        fits: Callable[[Part], bool] | None = None,
        offering: Callable[[Sequence[int]], Awaitable[str | None]] | None = None,
        generated: Sequence[int] = (),
        give_back: Callable[[], None] | None = None,
    ) -> None:
        self._outputs = outputs
        self._reader = reader
        self._saving = saving
        self._guide = guide
        self._fits = fits
        self._offering = offering
        self._generated = list(generated)
        self._give_back = give_back
        self._parts = self._read()

    @property
    def saving(self) -> Callable[[], None] | None:
        """Writes the conversation's capsules, after the answer was sent. Blocks. None: nothing to write."""
        return self._saving

    @property
    def parts(self) -> AsyncGenerator[Part, None]:
        """The parts of the answer, the last of them an End. Always the same generator; leaving the answer closes it.

        Raises:
            ServiceError: 400, the form became too complex; 500, the model failed; 503, the server stops; 504, the
                deadline passed before the first output.
        """
        return self._parts

    async def begun(self) -> None:
        """Wait for the first output.

        Raises:
            ServiceError: 504, the deadline passed before it.
        """
        try:
            await self._outputs.begun()
        except BaseException:
            await self._return()
            raise

    async def _return(self) -> None:
        """Without an output, a continuation was not used."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            await asyncio.shield(asyncio.to_thread(give_back))

    async def _read(self) -> AsyncGenerator[Part, None]:
        has_begun = False
        async with aclosing(aiter(self._outputs)) as outputs:
            async for output in outputs:
                self._check_alive(output)
                self._give_back = None
                if not has_begun:
                    has_begun = True
                    yield self._reader.begun(output)
                if output.finish_reason is FinishReason.DEADLINE and self._offering is not None:
                    token = await self._offering(self._generated)
                    if token is not None:
                        yield self._reader.suspended(output, token)
                        return
                self._generated += output.token_ids
                for part in self._reader.read(output):
                    if not isinstance(part, End) and self._fits is not None and not self._fits(part):
                        part = self._reader.cut(output)
                    if isinstance(part, End):
                        self._outputs.abort()  # stops further output; does nothing if the model has ended
                        yield part
                        return
                    yield part

    def _check_alive(self, output: RequestOutput) -> None:
        if output.finish_reason is FinishReason.ABORT:
            raise errors.closing()  # only closing the engine aborts a request that is still being answered
        if output.finish_reason is FinishReason.GUIDE:
            param = None if self._guide is None else self._guide.param
            raise errors.invalid(f"{output.error}: send a simpler form", param, "invalid_guide")
        if output.finish_reason is FinishReason.ERROR:
            logger.error("request %s failed: %s", output.request_id, output.error)
            raise errors.internal()

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._outputs.abort()
        await self._parts.aclose()
        await self._return()
