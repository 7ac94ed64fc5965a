"""What a chat asks for, in no API's words, and what the engine and the chat template make of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.params import SamplingParams

if TYPE_CHECKING:  # pulls in the tokenizer and the template, which a command line imports once it needs them
    from qwonnx.runtime.text.chat_prompt import ChatModel, ChatPrompt


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One answer that is wanted. An API translates its body into this; the command line makes it from options.

    messages: as chat templates take them: role, content as a string, and where there are such reasoning_content,
        tool_calls, tool_call_id and name.
    tools: what the model is told it may call, `{"type": "function", "function": {"name", "description", "parameters"}}`
        each; none if it must not call any.
    sampling: fields of SamplingParams, by name, that the request sets; the others are the checkpoint's recommendation.
    guide: gives the form of the answer, None if it may be anything. Called once the prompt has been rendered; it may
        raise ServiceError or InvalidRequestError.
    thinking: whether the model thinks before it answers; None leaves it to the template.
    one_call: the answer ends after its first tool call.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    guide: Callable[[], Guide | None] | None = None
    thinking: bool | None = None
    one_call: bool = False

    def params(self, recommended: SamplingParams) -> SamplingParams:
        """The checkpoint's recommended sampling, changed by what the request says; without the guide.

        Raises:
            InvalidRequestError: a value out of range, with its name as param.
        """
        return dataclasses.replace(recommended, **self.sampling)

    def render(self, model: ChatModel) -> ChatPrompt:
        """The prompt. Takes time in proportion to the conversation.

        Raises:
            TemplateError: the model has no template, or it refuses the conversation.
        """
        from qwonnx.runtime.text.chat_prompt import render_chat

        variables = {} if self.thinking is None else {"enable_thinking": self.thinking}
        return render_chat(model, self.messages, self.tools, variables)

    def guide_of(self, prompt: ChatPrompt) -> Guide | None:
        """The form of the answer to this prompt, which holds for what follows the thoughts if the prompt opens them.

        Raises:
            ServiceError, InvalidRequestError: what the request's guide raises.
        """
        guide = None if self.guide is None else self.guide()
        return None if guide is None else dataclasses.replace(guide, after_thinking=prompt.thinking_open)
