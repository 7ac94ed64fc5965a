"""A chat request, independent of an API, and the prompt, sampling parameters and guide that follow from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.params import SamplingParams

if TYPE_CHECKING:  # imports the tokenizer and the template, which a command needs later
    from qwonnx.runtime.text.chat_prompt import ChatModel, ChatPrompt
    from qwonnx.runtime.text.template_text import TemplateText


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request for one answer. An API translates its body into this; the command line makes it from options.

    messages: as chat templates take them: role, content as a string, and optionally reasoning_content, tool_calls,
        tool_call_id and name.
    tools: tools that the model may call, each `{"type": "function", "function": {"name", "description",
        "parameters"}}`; empty if it must not call tools.
    sampling: fields of SamplingParams, by name, that the request sets; the checkpoint recommends the others.
    guide: returns the form of the answer, or None. Called after the prompt is rendered; may raise ServiceError or
        InvalidRequestError.
    thinking: whether the model thinks before it answers; None leaves it to the template.
    one_call: the answer ends after its first tool call.
    continuation: the token of an answer to this request that goes on.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    guide: Callable[[], Guide | None] | None = None
    thinking: bool | None = None
    one_call: bool = False
    continuation: str | None = None

    def params(self, recommended: SamplingParams) -> SamplingParams:
        """The checkpoint's recommended sampling with the request's values; without the guide.

        Raises:
            InvalidRequestError: a value out of range, with its name as param.
        """
        return dataclasses.replace(recommended, **self.sampling)

    def render(self, model: ChatModel) -> ChatPrompt:
        """The prompt. The time is proportional to the conversation.

        Raises:
            TemplateError: the model has no template, or it refuses the conversation.
        """
        from qwonnx.runtime.text.chat_prompt import encode_chat

        return encode_chat(model, self.render_text(model), self.tools)

    def render_text(self, model: ChatModel) -> TemplateText:
        """The prompt as text.

        Raises:
            TemplateError: the model has no template, or it refuses the conversation.
        """
        from qwonnx.runtime.text.chat_prompt import render_text

        variables = {} if self.thinking is None else {"enable_thinking": self.thinking}
        return render_text(model, self.messages, self.tools, variables)

    def guide_of(self, prompt: ChatPrompt) -> Guide | None:
        """The form of the answer to this prompt. If the prompt opens the reasoning, the form applies after that.

        Raises:
            ServiceError, InvalidRequestError: raised by the request's guide.
        """
        guide = None if self.guide is None else self.guide()
        return None if guide is None else dataclasses.replace(guide, after_thinking=prompt.thinking_open)
