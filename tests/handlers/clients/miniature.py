"""A live server of the trained miniature, which notes the paths of the requests that it answers."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.miniature.checkpoint import TRAINED
from qwonnx.handlers.app import create_app
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.request import RequestOutput
from qwonnx.runtime.settings import RuntimeSettings
from tests.handlers.serving import serving


def export(folder: Path, max_model_len: int | None = None) -> Path:
    """Export the miniature, for contexts longer than it learnt with if a length is given. Returns the artifact."""
    from qwonnx.export import ExportOptions, export_checkpoint  # imports torch

    checkpoint = TRAINED
    if max_model_len is not None:
        checkpoint = Path(shutil.copytree(TRAINED, folder / "checkpoint"))
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        config["text_config"]["max_position_embeddings"] = max_model_len
        (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    export_checkpoint(checkpoint, folder / "artifact", ExportOptions())
    return folder / "artifact"


@dataclass(frozen=True, slots=True)
class Miniature:
    """A running server.

    Attributes:
        url: its address.
        answered: how many requests of a path had which status.
        prompts: tokens of the prompts that the engine has read; each has the first token of an answer.
    """

    url: str
    answered: Counter[tuple[str, int]]
    prompts: list[int]


@contextmanager
def serving_miniature(artifact: Path, max_model_len: int) -> Iterator[Miniature]:
    """Serve the miniature under any name."""
    answered: Counter[tuple[str, int]] = Counter()

    def noting(host: ModelHost, settings: ServerSettings) -> ASGIApp:
        app = create_app(host, settings)

        async def noted(scope: Scope, receive: Receive, send: Send) -> None:
            async def sent(message: Message) -> None:
                if message["type"] == "http.response.start":
                    answered[scope["path"], message["status"]] += 1
                await send(message)

            await app(scope, receive, sent)

        return noted

    runtime = RuntimeSettings(num_threads=1, max_num_seqs=4, max_model_len=max_model_len, spin=False)
    settings = ServerSettings(any_model_name=True, shutdown_seconds=0.5)
    with serving(artifact, runtime=runtime, settings=settings, make_app=noting) as served:
        prompts: list[int] = []
        submit = served.engine.submit

        def noted(
            prompt_token_ids: Sequence[int], params: Any, on_output: Callable[[RequestOutput], None], **options: Any
        ) -> str:
            def heard(output: RequestOutput) -> None:
                if output.num_generated_tokens == 1 and output.token_ids:
                    prompts.append(output.num_prompt_tokens)
                on_output(output)

            return submit(prompt_token_ids, params, heard, **options)

        served.engine.submit = noted  # type: ignore[method-assign]
        yield Miniature(served.url, answered, prompts)
