"""Writes a text completion in OpenAI's objects, as a whole or in chunks."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import msgspec

from qwonnx.handlers.chat.choices import Numbered
from qwonnx.handlers.chat.parts import ContentLogprobs, End, EndReason, Part, Usage
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http import sse
from qwonnx.handlers.openai import errors
from qwonnx.handlers.openai.chat_objects import (
    DONE,
    CompletionTokensDetails,
    CompletionUsage,
    PromptTokensDetails,
)
from qwonnx.handlers.openai.text_objects import FinishReasonName, TextChoice, TextCompletion, TextLogprobs
from qwonnx.handlers.openai.text_protocol import TextCompletionRequest
from qwonnx.runtime.sampling.entropy import fresh_id
from qwonnx.runtime.sampling.scores import TokenLogprob
from qwonnx.runtime.text.answer_events import ContentDelta
from qwonnx.runtime.text.tokenizer import Tokenizer


class TextWriter:
    """Writes one completion, of some prompts with some answers each.

    Args:
        request: checked.
        prompts: its prompts; an echo begins with them.
        model: the model's name.
        fingerprint: of the artifact.
        tokenizer: the model's.
    """

    keep_alive = sse.COMMENT

    def __init__(
        self,
        request: TextCompletionRequest,
        prompts: Sequence[str | Sequence[int]],
        model: str,
        fingerprint: str,
        tokenizer: Tokenizer,
    ) -> None:
        self.id = f"cmpl-{fresh_id()}"
        self._created = int(time.time())
        self._model = model
        self._fingerprint = fingerprint
        self._tokenizer = tokenizer
        self._with_usage = request.stream_options is not None and request.stream_options.include_usage
        self._with_logprobs = request.logprobs is not None
        self._per_prompt = request.n or 1
        self._echoes = [""] * len(prompts)
        if request.echo:
            self._echoes = [each if isinstance(each, str) else tokenizer.decode(each) for each in prompts]

    def piece(self, part: Part, *, stream: bool) -> bytes:
        """What this part adds to the answer."""
        if not isinstance(part, ContentDelta):
            return b""
        return self._chunk(TextChoice(part.text, 0, None)) if stream else msgspec.json.encode(part.text)[1:-1]

    async def whole(self, parts: AsyncIterator[Numbered]) -> bytes:
        """A text_completion.

        Raises:
            ServiceError: raised by `parts`.
        """
        choices = self._choices()
        async for each in parts:
            choices[each.index].add(each.part)
        made = [TextChoice(each.taken(), each.index, each.reason, each.taken_logprobs()) for each in choices]
        return msgspec.json.encode(self._object(made, self._usage([each.usage for each in choices])))

    async def events(self, parts: AsyncIterator[Numbered]) -> AsyncGenerator[bytes, None]:
        """text_completions with more of the text; the last event is [DONE] or an error."""
        choices = self._choices()
        try:
            for choice in choices:
                if echo := choice.taken():
                    yield self._chunk(TextChoice(echo, choice.index, None))
            async for each in parts:
                choice = choices[each.index]
                choice.add(each.part)
                if isinstance(each.part, ContentDelta | End):
                    yield self._chunk(TextChoice(choice.taken(), choice.index, choice.reason, choice.taken_logprobs()))
            if self._with_usage:
                yield sse.event(self._object([], self._usage([choice.usage for choice in choices])))
        except ServiceError as error:
            yield sse.event(errors.body(error))
        else:
            yield DONE

    def _choices(self) -> list[_Choice]:
        return [
            _Choice(number * self._per_prompt + index, echo, self._tokenizer if self._with_logprobs else None)
            for number, echo in enumerate(self._echoes)
            for index in range(self._per_prompt)
        ]

    def _chunk(self, choice: TextChoice) -> bytes:
        return sse.event(self._object([choice], None if self._with_usage else msgspec.UNSET))

    def _object(self, choices: list[TextChoice], usage: CompletionUsage | msgspec.UnsetType | None) -> TextCompletion:
        return TextCompletion(self.id, self._created, self._model, choices, self._fingerprint, usage)

    def _usage(self, usages: Sequence[Usage]) -> CompletionUsage:
        """Of all prompts, each counted once, and all answers."""
        firsts = usages[:: self._per_prompt]
        prompt = sum(usage.num_prompt_tokens for usage in firsts)
        generated = sum(usage.num_generated_tokens for usage in usages)
        cached = PromptTokensDetails(sum(usage.num_cached_tokens for usage in firsts))
        return CompletionUsage(prompt, generated, prompt + generated, cached, CompletionTokensDetails(0))


class _Choice:
    """One answer: what has come, and was not taken yet.

    Args:
        index: of the choice.
        echo: the text before the answer's.
        tokenizer: for log probabilities; None: they were not asked for.
    """

    def __init__(self, index: int, echo: str, tokenizer: Tokenizer | None) -> None:
        self.index = index
        self.reason: FinishReasonName | None = None
        self._usage: Usage | None = None
        self._text = [echo]
        self._tokenizer = tokenizer
        self._logprobs = TextLogprobs([], [], [], [])
        self._num_characters = len(echo)  # of all tokens with log probabilities

    @property
    def usage(self) -> Usage:
        assert self._usage is not None, "an answer without an end raises"
        return self._usage

    def add(self, part: Part) -> None:
        match part:
            case ContentDelta(text):
                self._text.append(text)
            case ContentLogprobs(logprobs) if self._tokenizer is not None:
                text = self._text_of(logprobs.chosen)
                self._logprobs.tokens.append(text)
                self._logprobs.token_logprobs.append(logprobs.chosen.logprob)
                likeliest = (*logprobs.top, logprobs.chosen)  # OpenAI's have the sampled one, too
                self._logprobs.top_logprobs.append({self._text_of(each): each.logprob for each in likeliest})
                self._logprobs.text_offset.append(self._num_characters)
                self._num_characters += len(text)
            case End(reason, usage):
                self.reason = "length" if reason is EndReason.LENGTH else "stop"
                self._usage = usage
            case _:
                pass  # a text has no reasoning and no calls

    def taken(self) -> str:
        text, self._text = "".join(self._text), []
        return text

    def taken_logprobs(self) -> TextLogprobs | None:
        if self._tokenizer is None:
            return None
        logprobs, self._logprobs = self._logprobs, TextLogprobs([], [], [], [])
        return logprobs

    def _text_of(self, token: TokenLogprob) -> str:
        """A token's text; of a part of a character, its bytes in OpenAI's way of writing them."""
        assert self._tokenizer is not None
        data = self._tokenizer.token_bytes(token.token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
