"""A live server whose model says what a script says: clients that need a model that obeys get one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.settings import RuntimeSettings
from tests.checkpoints import chat_template
from tests.handlers.serving import Served, serving
from tests.runtime import counting_model

MODEL = "scripted"
RUNTIME = RuntimeSettings(num_threads=1, max_num_seqs=4, max_num_batched_tokens=512, max_model_len=262_144, spin=False)

Say = Callable[[str], str]
"""From the rendered prompt to the answer's text, from after the prompt's <think> on."""


@contextmanager
def scripted(folder: Path, say: Say) -> Iterator[Served]:
    """Serve a model under any name. Its prompts are rendered by Qwen's template; no graph runs.

    Args:
        folder: new, for the artifact.
        say: called on a thread of its own for each request.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting_model, "MAX_POSITION_EMBEDDINGS", RUNTIME.max_model_len)
        counting_model.make(folder, chat_template=chat_template())
    settings = ServerSettings(model_name=MODEL, any_model_name=True, shutdown_seconds=0.5)
    with serving(folder, runtime=RUNTIME, settings=settings) as served:
        engine = served.engine

        def submit(
            prompt_token_ids: Sequence[int], params: Any, on_output: Callable[[RequestOutput], None], **options: Any
        ) -> str:
            name = str(options.get("request_id") or "request")
            prompt = engine.tokenizer.decode(list(prompt_token_ids))
            answer = threading.Thread(target=_answer, args=(name, say(prompt), len(prompt_token_ids), on_output))
            answer.start()
            return name

        engine.submit = submit  # type: ignore[method-assign]
        engine.abort = lambda request_id, *, keep=False: None  # type: ignore[method-assign]
        yield served


def _answer(name: str, text: str, num_prompt: int, on_output: Callable[[RequestOutput], None]) -> None:
    """A few characters a token, and the end."""
    pieces = [text[at : at + 3] for at in range(0, len(text), 3)]
    for number, piece in enumerate(pieces, 1):
        on_output(RequestOutput(name, piece, (1,), None, num_prompt, number, 0))
    on_output(RequestOutput(name, "", (1,), FinishReason.STOP, num_prompt, len(pieces) + 1, 0))
