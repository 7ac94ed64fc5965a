"""The demonstration: export the trained miniature and serve it; with --once also ask it a question, and stop.

The miniature (tests/miniature/CARD.md) is a Qwen 3.5 of nine million parameters that knows the names of countries,
languages, currencies, weekdays and months in 46 languages; --once fails unless its answer is right. Each step is a
command that a user would type, and is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT, ARTIFACT = "tests/miniature/checkpoint", ".demo/artifact"  # in ROOT, where every command runs
MODEL_NAME = "miniature"
QUESTION, ANSWER = "What is Germany called in Swahili?", "Ujerumani"
_READY_SECONDS = 120.0
_STOP_SECONDS = 20.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help="send one streamed chat request, print the answer, stop")
    parser.add_argument("--port", type=int, default=8000, help="the server's port; --once takes any free one")
    arguments = parser.parse_args()
    port = _free_port() if arguments.once else arguments.port
    try:
        _run("qwonnx", "export", CHECKPOINT, ARTIFACT, "--weights", "int4", "--force")
        with _server(port) as server:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, server)
            if arguments.once:
                return _ask(url)
            print(_what_to_ask(url), flush=True)
            return server.wait()
    except subprocess.CalledProcessError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0  # the server has stopped by itself, on the same Ctrl-C


def _run(*command: str) -> None:
    subprocess.run(_in_environment(*command), cwd=ROOT, check=True)


def _in_environment(program: str, *arguments: str) -> list[str]:
    """Print a command as a user would type it, and return it with the program of this virtual environment."""
    print("$", program, *arguments, flush=True)
    return [str(Path(sys.executable).with_name(program)), *arguments]


@contextlib.contextmanager
def _server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = _in_environment("qwonnx", "serve", ARTIFACT, "--port", str(port), "--model-name", MODEL_NAME)
    server = subprocess.Popen(command, cwd=ROOT)
    try:
        yield server
    finally:
        if server.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(0.5)  # Ctrl-C went to it as well: let it finish
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
        try:
            server.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"demo: the server stopped with status {server.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise SystemExit(f"demo: the server was not ready after {_READY_SECONDS:.0f} s")


def _what_to_ask(url: str) -> str:
    """A question to which the miniature knows the answer, as a line for a shell."""
    body = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": QUESTION}],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    lines = [
        "The miniature knows names in 46 languages (tests/miniature/CARD.md). Ask it:",
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json' \\",
        f"    -d {shlex.quote(json.dumps(body))}",
    ]
    if "QWONNX_API_KEY" in os.environ:
        lines.insert(2, '    -H "authorization: Bearer $QWONNX_API_KEY" \\')
    return "\n".join(lines)


def _ask(url: str) -> int:
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("QWONNX_API_KEY", "none"))
    stream = client.chat.completions.create(
        model=MODEL_NAME,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=48,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    finish_reason, usage, answer = None, None, ""
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            finish_reason = choice.finish_reason or finish_reason
            answer += choice.delta.content or ""
    # Printed at once: else the server's line about the request would be in the middle of it.
    print(f"\nquestion: {QUESTION}\nanswer: {answer}")
    print(f"finish_reason {finish_reason}, usage {usage.to_json(indent=None) if usage else None}")
    if finish_reason != "stop" or usage is None or usage.completion_tokens == 0:
        print("demo: the answer is not complete", file=sys.stderr)
        return 1
    if answer.strip() != ANSWER:
        print(f"demo: the answer is {answer.strip()!r}, and {ANSWER!r} is right", file=sys.stderr)
        return 1
    return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
