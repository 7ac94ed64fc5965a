"""Starts a server, and asks it as any program does that knows OpenAI's API: `python examples/serve_and_ask.py [MODEL]`.

It needs the package openai. A service would start `qwonnx serve` by systemd or in a container instead (docs/deploy.md).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI

from qwonnx import LLM

MINIATURE = Path(__file__).parent.parent / "tests" / "miniature" / "checkpoint"


@contextmanager
def served(artifact: str | Path) -> Iterator[str]:
    """The address of a server of the artifact, on a free port."""
    command = [sys.executable, "-m", "qwonnx.handlers.cli", "serve", str(artifact), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = next(line for line in process.stdout if "http://" in line)
            yield "http://" + line.partition("http://")[2].split("/")[0].split()[0]
        finally:
            process.terminate()  # it lets running answers end first


def main(model: str | Path = MINIATURE) -> None:
    with LLM(model) as llm:  # exports a checkpoint, if it is one
        artifact = llm.engine.artifact.folder
    with served(artifact) as address:
        client = OpenAI(base_url=f"{address}/v1", api_key="none")
        name = client.models.list().data[0].id
        stream = client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": "Tell me what Norway is called in Georgian."}],
            temperature=0,
            stream=True,
            extra_body={"chat_template_kwargs": {"enable_thinking": False}},
        )
        for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:])
