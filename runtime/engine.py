"""The engine: requests in, deltas of answers out, one step at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from qwonnx.export.artifact import Artifact, open_artifact
from qwonnx.runtime.chat_template import ChatTemplate
from qwonnx.runtime.request import RequestOutput
from qwonnx.runtime.sampling_params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from qwonnx.runtime.tokenizer import Tokenizer


class Engine:
    """One artifact, ready to answer. One thread owns the session and every state; the rest of the world submits."""

    artifact: Artifact
    settings: RuntimeSettings
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    max_model_len: int
    default_sampling: SamplingParams
    eos_token_ids: frozenset[int]

    @classmethod
    def open(cls, folder: str | os.PathLike[str], settings: RuntimeSettings | None = None) -> Engine:
        """Load an artifact: session, states, tokenizer, template. Starts no thread."""
        open_artifact(folder)
        raise NotImplementedError

    @property
    def is_ready(self) -> bool:
        """True once a token went through the whole path, until close()."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the one engine thread; does nothing if it runs."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop the thread; whatever waits or runs ends with ABORT."""
        raise NotImplementedError

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        on_output: Callable[[RequestOutput], None],
        *,
        request_id: str | None = None,
    ) -> str:
        """Accept a request, from any thread; its outputs arrive on the engine thread."""
        raise NotImplementedError

    def abort(self, request_id: str) -> None:
        """End a request with ABORT within one step, from any thread; unknown or finished ids are ignored."""
        raise NotImplementedError

    def generate(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> Iterator[RequestOutput]:
        """Submit, and yield outputs until the last; closing the iterator aborts."""
        raise NotImplementedError

    def warm_up(self) -> None:
        """Send a token through the whole path, so that the first request does not pay for first touches."""
        raise NotImplementedError

    def step(self) -> list[RequestOutput]:
        """One schedule, run, sample, commit."""
        raise NotImplementedError

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
