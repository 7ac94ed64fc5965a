"""A chat request, independent of an API, and the prompt, sampling parameters and guide that follow from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from qwonnx.handlers.chat.conversation import folded
from qwonnx.handlers.effort import Effort, thinks
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.params import SamplingParams

if TYPE_CHECKING:  # imports the tokenizer and the template, which a command needs later
    from qwonnx.runtime.text.answer_beginning import AnswerBeginning
    from qwonnx.runtime.text.chat_prompt import ChatModel, ChatPrompt
    from qwonnx.runtime.text.template_text import TemplateText
    from qwonnx.runtime.text.text_prompt import Prompt


class ChatRequest(Struct, frozen=True):
    """A request for one answer. An API translates its body into this; the command line makes it from options.

    messages: as chat templates take them: role, content as a string, and optionally reasoning_content, tool_calls,
        tool_call_id and name. System messages may stand anywhere: see conversation.py.
    tools: tools that the model may call, each `{"type": "function", "function": {"name", "description",
        "parameters"}}`; empty if it must not call tools.
    sampling: fields of SamplingParams, by name, that the request sets; the checkpoint recommends the others.
    guide: returns the form of the answer, or None. Called after the prompt is rendered; may raise ServiceError or
        InvalidRequestError.
    thinking: whether the model thinks before it answers; None leaves it to the template.
    effort: how hard it shall think; it says more than `thinking` only where the server has budgets.
    thinking_budget: tokens of reasoning at most; then the model has to answer. None is no limit.
    preserve_thinking: the reasoning of earlier turns stays in the prompt, if the template can do that.
    number_pictures: the template numbers pictures and videos.
    continue_final: the last message is an assistant's, and its text is the beginning of the answer.
    opens_answer: the prompt opens the assistant's turn; a prompt that is only looked at may not.
    one_call: the answer ends after its first tool call.
    continuation: the token of an answer to this request that goes on.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    guide: Callable[[], Guide | None] | None = None
    thinking: bool | None = None
    effort: Effort | None = None
    thinking_budget: int | None = None
    preserve_thinking: bool | None = None
    number_pictures: bool | None = None
    continue_final: bool = False
    opens_answer: bool = True
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

        return encode_chat(model, self.render_text(model), self.tools, beginning=self.beginning)

    def render_text(self, model: ChatModel) -> TemplateText:
        """The prompt as text.

        Raises:
            TemplateError: the model has no template, or it refuses the conversation.
        """
        from qwonnx.runtime.text.chat_prompt import render_text

        thinking = thinks(self.effort) if self.thinking is None else self.thinking
        switches = {
            "enable_thinking": thinking,
            "preserve_thinking": self.preserve_thinking,
            "add_vision_id": self.number_pictures,
            "add_generation_prompt": None if self.opens_answer else False,
        }
        variables = {name: value for name, value in switches.items() if value is not None}
        messages = self.messages[:-1] if self.continue_final else self.messages
        return render_text(model, folded(messages), self.tools, variables)

    @property
    def beginning(self) -> AnswerBeginning | None:
        """The beginning of the answer that the last message gives."""
        if not self.continue_final:
            return None
        from qwonnx.runtime.text.answer_beginning import AnswerBeginning

        last = self.messages[-1]
        return AnswerBeginning(last["content"], last.get("reasoning_content", ""))

    def guide_of(self, prompt: Prompt) -> Guide | None:
        """The form of the answer to this prompt. If the prompt opens the reasoning, the form applies after that.

        Raises:
            ServiceError, InvalidRequestError: raised by the request's guide.
        """
        guide = None if self.guide is None else self.guide()
        return None if guide is None else guide.begun(after_thinking=prompt.thinking_open)
