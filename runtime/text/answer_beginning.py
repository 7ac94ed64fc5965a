"""The beginning of an answer that a request gives, so that the model continues it.

It follows the template's opening of the assistant's turn. A template that opens the reasoning is closed first where an
answer was begun, with the tags that it would write itself.
"""

from __future__ import annotations

from msgspec import Struct

from qwonnx.runtime.text.template_text import TemplateText, is_own, joined, own

_THINK, _THINK_END = "<think>", "</think>"


class AnswerBeginning(Struct, frozen=True):
    """Reasoning and content that come first in the answer. Without content, the reasoning itself goes on."""

    content: str
    reasoning: str = ""

    def after(self, text: TemplateText) -> TemplateText:
        """A rendered conversation, continued by this beginning.

        Args:
            text: it ends where the answer begins.
        """
        if not opens_thinking(text):
            return _text(text, self.content)  # the template has closed the reasoning, or has none
        if not self.content:
            return _text(text, self.reasoning)
        return _text(text, self.reasoning, own(f"\n{_THINK_END}\n\n"), self.content)

    def leaves_open(self, text: TemplateText) -> bool:
        """Whether the answer begins with reasoning after that."""
        return not self.content and opens_thinking(text)


def opens_thinking(text: TemplateText) -> bool:
    """Whether the template, and not a message, wrote a <think> at the end."""
    ending = text.rstrip()
    return ending.endswith(_THINK) and is_own(ending[len(ending) - len(_THINK) :])


def _text(*parts: str) -> TemplateText:
    text = joined(parts)
    return text if isinstance(text, TemplateText) else TemplateText(text)
