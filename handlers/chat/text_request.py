"""A request to continue a text, independent of an API; with the fields of ChatRequest that it can have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from qwonnx.handlers.effort import Effort
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.params import SamplingParams


class TextRequest(Struct, frozen=True):
    """A prompt for one answer.

    prompt: a text, or tokens.
    sampling, guide: see ChatRequest.
    effort, thinking_budget, one_call, continuation: always as they are here, because it is no conversation.
    """

    prompt: str | Sequence[int]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    guide: Callable[[], Guide | None] | None = None
    effort: Effort | None = None
    thinking_budget: int | None = None
    one_call: bool = False
    continuation: str | None = None

    def params(self, recommended: SamplingParams) -> SamplingParams:
        """The checkpoint's recommended sampling with the request's values; without the guide.

        Raises:
            InvalidRequestError: a value out of range, with its name as param.
        """
        return dataclasses.replace(recommended, **self.sampling)

    def guide_of(self, prompt: object) -> Guide | None:
        """The form of the answer, whatever the prompt.

        Raises:
            ServiceError, InvalidRequestError: raised by the request's guide.
        """
        return None if self.guide is None else self.guide()
