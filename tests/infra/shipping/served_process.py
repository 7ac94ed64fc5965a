"""A server as a process of its own, from a command that says where it listens, and a question for it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

_SERVING = re.compile(r"^Serving \S+ at (\S+)/v1")
SECONDS = 120.0


@contextmanager
def served_process(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, *, end: Callable[[], None] | None = None
) -> Iterator[str]:
    """Run it until its model is loaded; yields the URL. `end` stops it, instead of SIGTERM."""
    process = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            found = _SERVING.match(line)
            if found:
                yield found[1]
                break
        else:
            raise AssertionError("it ended before it served:\n" + "".join(lines))
    finally:
        if end is not None:
            end()
        else:
            process.terminate()
        rest = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 0, "".join(lines) + rest


def ask(url: str, text: str, **options: Any) -> str:
    """The answer to one question, at temperature 0."""
    with httpx.Client(base_url=url, timeout=SECONDS, trust_env=False) as client:
        model = client.get("/v1/models").json()["data"][0]["id"]
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, **options}
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    content = answer.json()["choices"][0]["message"]["content"]
    assert isinstance(content, str)
    return content
