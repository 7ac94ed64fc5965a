"""Many clients at once: `qwonnx serve` and llama.cpp's `llama-server`, over HTTP, in alternating runs.

    python -m infra.bench.throughput ARTIFACT [--llama-server PROGRAM --gguf FILE] [--clients 8] [--rounds 5]

Both servers get the same threads and one row for each client, and stay up; only one serves at a time. All clients send
one streamed chat request at the same moment, each with a new prompt of 128 tokens, and read 64 new tokens, greedy, not
ended by an end token. The results are the rate of all tokens (prompts and answers, from the first request to the last
answer) and each client's time to its first token. Without llama-server only qwonnx is measured. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from infra.bench.measured import ratio_summary
from qwonnx.runtime.text.chat_template import ChatTemplate
from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.handlers.cli.commands import QWONNX

PROMPT_TOKENS = 128
NEW_TOKENS = 64
_READY_SECONDS = 600.0
_PAUSE_SECONDS = 0.5  # lets the other server's threads end their busy wait
_MODEL = "bench"
_PARTS = ("content", "reasoning_content", "tool_calls")


@dataclass(frozen=True, slots=True)
class Answer:
    """The measurements of one client: seconds from the common start, and tokens by the server's own count."""

    first_token_s: float
    end_s: float
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Round:
    """One burst of all clients."""

    answers: tuple[Answer, ...]

    @property
    def tokens_per_s(self) -> float:
        """Tokens of prompts and answers per second."""
        tokens = sum(answer.prompt_tokens + answer.new_tokens for answer in self.answers)
        return tokens / max(answer.end_s for answer in self.answers)

    @property
    def slowest_first_token(self) -> float:
        """The longest time to a first token, as a multiple of the median."""
        times = [answer.first_token_s for answer in self.answers]
        return max(times) / statistics.median(times)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--llama-server", type=Path, help="the program")
    parser.add_argument("--gguf", type=Path, help="the same checkpoint for it, in Q4_0")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    if (options.llama_server is None) != (options.gguf is None):
        parser.error("--llama-server and --gguf go together")
    commands = {"qwonnx": _qwonnx(options)}
    if options.llama_server is not None:
        commands["llama-server"] = _llama_server(options)
    prompts = Prompts(options.artifact)
    runs: dict[str, list[Round]] = {name: [] for name in commands}
    with contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(_running(command)) for name, command in commands.items()}
        for turn in range(-1, options.rounds):  # the first warms up, and is not counted
            texts = [prompts.text(turn * options.clients + client) for client in range(options.clients)]
            # The order changes each round, so that other work on the machine affects both servers alike.
            for name in urls if turn % 2 else reversed(urls):
                time.sleep(_PAUSE_SECONDS)
                measured = burst(urls[name], texts)
                if turn >= 0:
                    runs[name].append(measured)
                    print(
                        f"round {turn + 1} {name:12}: {measured.tokens_per_s:7.1f} tokens/s,"
                        f" slowest first token {measured.slowest_first_token:.2f} of the median",
                        flush=True,
                    )
    print(
        json.dumps(
            {
                "benchmark": "throughput",
                "command": " ".join(
                    ["python -m infra.bench.throughput", *map(str, sys.argv[1:] if arguments is None else arguments)]
                ),
                **summary(runs),
            }
        )
    )


class Prompts:
    """Different user texts, of which the artifact's template makes prompts of PROMPT_TOKENS tokens."""

    def __init__(self, artifact: Path) -> None:
        self._tokenizer = Tokenizer.from_file(artifact / "tokenizer.json")
        self._template = ChatTemplate((artifact / "chat_template.jinja").read_text(encoding="utf-8"))
        pieces = (self._tokenizer.decode([token]) for token in range(self._tokenizer.num_tokens))
        self._words = [piece for piece in pieces if piece.isascii() and piece.strip().isalpha()]

    def text(self, number: int) -> str:
        """The user's text of one prompt."""
        random = np.random.default_rng([7, number & 0xFFFF_FFFF])
        text = ""
        while self._length(text) < PROMPT_TOKENS:
            text += self._words[int(random.integers(len(self._words)))]
        return text

    def _length(self, text: str) -> int:
        messages = [{"role": "user", "content": text}]
        return len(self._tokenizer.encode(self._template.render(messages, enable_thinking=False)))


def burst(url: str, texts: Sequence[str]) -> Round:
    """One request for each text, at once."""
    with ThreadPoolExecutor(len(texts)) as pool, httpx.Client(base_url=url, timeout=600, trust_env=False) as http:
        began = time.perf_counter()
        return Round(tuple(pool.map(lambda text: _ask(http, text, began), texts)))


def _ask(http: httpx.Client, text: str, began: float) -> Answer:
    body = {
        "model": _MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "chat_template_kwargs": {"enable_thinking": False},
    }
    first: float | None = None
    usage: dict[str, Any] = {}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(f"{http.base_url} answered {response.status_code}: {response.read().decode()[:500]}")
        for line in _lines(response):
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line.removeprefix(b"data: "))
            usage = chunk.get("usage") or usage
            deltas = [choice["delta"] for choice in chunk.get("choices", ())]
            if first is None and any(delta.get(part) for delta in deltas for part in _PARTS):
                first = time.perf_counter() - began
    end = time.perf_counter() - began
    if usage.get("completion_tokens") != NEW_TOKENS:
        raise SystemExit(f"{http.base_url} did not write {NEW_TOKENS} tokens: {usage}")
    # Random weights may write a text like the beginning of a call, which the server holds back to the end.
    return Answer(end if first is None else first, end, usage["prompt_tokens"], usage["completion_tokens"])


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """Lines that end in a newline: httpx also splits at other line breaks of Unicode, which may be part of a text."""
    rest = b""
    for block in response.iter_bytes():
        *lines, rest = (rest + block).split(b"\n")
        yield from lines


def summary(runs: dict[str, list[Round]]) -> dict[str, Any]:
    """Medians of all rounds, and the ratio of each round's rates."""
    result: dict[str, Any] = {
        name: {
            "tokens_per_s": round(statistics.median(each.tokens_per_s for each in rounds), 1),
            "slowest_first_token": round(max(each.slowest_first_token for each in rounds), 2),
            "median_first_token_s": round(
                statistics.median(answer.first_token_s for each in rounds for answer in each.answers), 3
            ),
        }
        for name, rounds in runs.items()
    }
    if len(runs) == 2:
        ours, theirs = ([each.tokens_per_s for each in rounds] for rounds in runs.values())
        result["ratio"] = ratio_summary(ours, theirs)
    return result


def _qwonnx(options: argparse.Namespace) -> list[str]:
    command = [*QWONNX, "serve", str(options.artifact), "--model-name", _MODEL]
    return [*command, "--max-num-seqs", str(options.clients), "--threads", str(options.threads)]


def _llama_server(options: argparse.Namespace) -> list[str]:
    context = options.clients * 2 * (PROMPT_TOKENS + NEW_TOKENS)
    command = [str(options.llama_server), "-m", str(options.gguf), "--jinja", "-np", str(options.clients)]
    return [*command, "-c", str(context), "-t", str(options.threads), "-tb", str(options.threads)]


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[str]:
    """Start a server, and yield its URL when it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"it does not start: {' '.join(command)}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def _is_ready(url: str) -> bool:
    """Whether a server answers requests: qwonnx says so at /health/ready, llama-server at /health."""
    for path in ("/health/ready", "/health"):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url + path, timeout=5, trust_env=False).status_code == 200:
                return True
    return False


if __name__ == "__main__":
    main()
