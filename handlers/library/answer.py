"""An answer: a string with the facts about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from qwonnx.handlers.chat.parts import ContentLogprobs, End, EndReason, Part, Usage
from qwonnx.handlers.library.errors import AnswerError
from qwonnx.handlers.library.schemas import AnswerSchema
from qwonnx.runtime.sampling.entropy import fresh_id
from qwonnx.runtime.sampling.scores import SampledLogprobs, TokenLogprob
from qwonnx.runtime.text.answer_events import ArgumentsDelta, CallOpened, ContentDelta, ReasoningDelta
from qwonnx.runtime.text.tokenizer import Tokenizer

_FINISH = {EndReason.STOP: "stop", EndReason.LENGTH: "length", EndReason.CALLS: "tool_calls"}


class ToolCall(Struct, frozen=True):
    """A call of a tool.

    name: of the tool.
    arguments_json: the JSON text of an object; incomplete if the answer was cut off in it.
    id: of the call, for the message with its result.
    function: the Python function that was given as the tool, or None.
    """

    name: str
    arguments_json: str
    id: str
    function: Callable[..., Any] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name.

        Raises:
            AnswerError: the answer was cut off in the call.
        """
        try:
            return msgspec.json.decode(self.arguments_json, type=dict[str, Any])
        except msgspec.DecodeError as error:
            message = f"the answer was cut off in the arguments of {self.name}: raise max_tokens"
            raise AnswerError(message) from error

    def run(self) -> Any:
        """Call the Python function with these arguments, and return what it returns.

        Raises:
            AnswerError: the arguments are cut off, or the tool is not a Python function.
            the errors of the function.
        """
        if self.function is None:
            raise AnswerError(f"{self.name} was not given as a Python function: call it yourself with `arguments`")
        from qwonnx.handlers.library.functions import call_with

        return call_with(self.function, self.arguments)

    def result(self, value: object) -> dict[str, Any]:
        """The message with the result of this call, for the next chat(). A value that is no text becomes JSON."""
        content = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        return {"role": "tool", "tool_call_id": self.id, "name": self.name, "content": content}


class Logprob(Struct, frozen=True):
    """A token of the answer with the natural logarithm of its probability.

    top: the likeliest tokens in its place, in falling order, without `top` of their own.
    """

    token: str
    token_id: int
    logprob: float
    top: tuple[Logprob, ...] = ()


class Answer(str):
    """The text of an answer, without its reasoning.

    reasoning: the thoughts before it; empty if there are none.
    tool_calls: calls of tools, in their order.
    finish_reason: "stop", "length" (cut off at a limit) or "tool_calls".
    usage: counts of tokens.
    stop_string: the text of `stop` that ended the answer, or None.
    logprobs: of each token outside of the reasoning; None unless they were asked for.
    """

    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    usage: Usage
    stop_string: str | None
    logprobs: tuple[Logprob, ...] | None
    _schema: AnswerSchema | None

    def __new__(
        cls,
        text: str = "",
        *,
        reasoning: str = "",
        tool_calls: Sequence[ToolCall] = (),
        finish_reason: str = "stop",
        usage: Usage | None = None,
        stop_string: str | None = None,
        logprobs: Sequence[Logprob] | None = None,
        schema: AnswerSchema | None = None,
    ) -> Answer:
        answer = super().__new__(cls, text)
        answer.reasoning = reasoning
        answer.tool_calls = tuple(tool_calls)
        answer.finish_reason = finish_reason
        answer.usage = usage or Usage(0, 0, 0, 0)
        answer.stop_string = stop_string
        answer.logprobs = None if logprobs is None else tuple(logprobs)
        answer._schema = schema
        return answer

    @property
    def parsed(self) -> Any:
        """The answer as an instance of the class in `schema`, or the decoded JSON of a schema in a dictionary.

        None without a schema, and if the answer calls tools instead.

        Raises:
            AnswerError: the answer was cut off before its end, or the class refuses its values.
        """
        if self._schema is None or (self.tool_calls and not self.strip()):
            return None
        if self.finish_reason == "length":
            tokens = self.usage.num_generated_tokens
            raise AnswerError(
                f"the answer was cut off after {tokens} tokens and does not have its form: raise max_tokens"
            )
        return self._schema.parsed(str(self))

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, so that a conversation can go on."""
        message: dict[str, Any] = {"role": "assistant", "content": str(self)}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        return message


class AnswerBuilder:
    """Collects the parts of an answer.

    Args:
        tokenizer: for the texts of log probabilities.
        schema: that the answer follows, or None.
        functions: Python functions that are tools, by name.
        logprobs: they were asked for.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        schema: AnswerSchema | None,
        functions: Mapping[str, Callable[..., Any]],
        *,
        logprobs: bool,
    ) -> None:
        self._tokenizer, self._schema, self._functions = tokenizer, schema, functions
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCall] = []
        self._arguments: list[str] = []  # of the last call
        self._logprobs: list[Logprob] | None = [] if logprobs else None
        self._end: End | None = None

    def add(self, part: Part) -> None:
        match part:
            case ContentDelta(text):
                self._texts.append(text)
            case ReasoningDelta(text):
                self._thoughts.append(text)
            case CallOpened(name):
                self._close_call()
                self._calls.append(ToolCall(name, "", f"call_{fresh_id()}", self._functions.get(name)))
            case ArgumentsDelta(text):
                self._arguments.append(text)
            case ContentLogprobs(sampled) if self._logprobs is not None:
                self._logprobs.append(self._logprob(sampled))
            case End():
                self._end = part

    def answer(self) -> Answer:
        """The answer.

        Raises:
            AnswerError: it has not ended.
        """
        if self._end is None:
            raise AnswerError("the answer has not ended: read the stream to its end first")
        self._close_call()
        return Answer(
            "".join(self._texts),
            reasoning="".join(self._thoughts).strip(),
            tool_calls=self._calls,
            finish_reason=_FINISH[self._end.reason],
            usage=self._end.usage,
            stop_string=self._end.stop_string,
            logprobs=self._logprobs,
            schema=self._schema,
        )

    def _close_call(self) -> None:
        if self._calls and self._arguments:
            self._calls[-1] = msgspec.structs.replace(self._calls[-1], arguments_json="".join(self._arguments))
            self._arguments = []

    def _logprob(self, sampled: SampledLogprobs) -> Logprob:
        chosen = self._one(sampled.chosen)
        return Logprob(chosen.token, chosen.token_id, chosen.logprob, tuple(self._one(each) for each in sampled.top))

    def _one(self, token: TokenLogprob) -> Logprob:
        text = self._tokenizer.token_bytes(token.token_id).decode("utf-8", "replace")
        return Logprob(text, token.token_id, token.logprob)
