"""Offline batches: the lines of a file by `qwonnx batch`'s engine, and sent one after the other to a server.

    python -m infra.bench.batch ARTIFACT [--rounds 3] [--rows 16] [--lines 400]

Each round answers the same lines both ways, in turn: as a batch in this process, and by `qwonnx serve` in another, over
one connection. The answers begin with thoughts, so that they have some length. Then a document is read with one
question and with all of them. Times are those of the runs, without the start of an engine. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from starlette.applications import Starlette

from infra.bench.measured import ratio_summary
from qwonnx.handlers.app import create_app
from qwonnx.handlers.batch.results import Results
from qwonnx.handlers.batch.run import BatchRun, Progress
from qwonnx.handlers.batch.tasks import CHAT_PATH, ChatOptions, questions_about
from qwonnx.handlers.batch.work import Refused, Work
from qwonnx.handlers.bench.cold_start import serve_command
from qwonnx.handlers.bench.start import PORT
from qwonnx.handlers.model_host import ModelHost
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.settings import RuntimeSettings


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lines", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=200, help="of an answer, at most")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--document-tokens", type=int, default=8000)
    parser.add_argument("--rows", type=int, default=16, help="of the engine")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    settings = RuntimeSettings(
        num_threads=options.threads, max_model_len=options.document_tokens + 2048, max_num_seqs=options.rows
    )
    host = ModelHost(lambda: Engine.open(options.artifact, settings), model_names=("bench",))
    host.wait()
    app = create_app(host)
    chat = ChatOptions("bench", max_tokens=options.tokens, temperature=0, thinking=True)
    rates: dict[str, list[float]] = {"batch": [], "one by one": []}
    with _served(options.artifact, options.threads, settings) as port:
        for number in range(options.rounds):
            work = [
                Work(
                    str(line),
                    line,
                    CHAT_PATH,
                    chat.body("Be brief.", f"Round {number}, number {line}: what is it?"),
                )
                for line in range(options.lines)
            ]
            seconds, progress = _timed(app, work, settings.max_num_seqs)
            rates["batch"].append((progress.prompt_tokens + progress.generated_tokens) / seconds)
            rates["one by one"].append(_one_by_one(port, work))
            print(", ".join(f"{name}: {each[-1]:.0f} tokens/s" for name, each in rates.items()))
    read = [_document(app, host, chat, options.document_tokens, 1, f"{number}") for number in range(options.rounds)]
    asked = [
        _document(app, host, chat, options.document_tokens, options.questions, f"more {number}")
        for number in range(options.rounds)
    ]
    host.close()
    print(
        json.dumps(
            {
                "benchmark": "batch",
                "lines": options.lines,
                "rows": options.rows,
                "tokens_per_second": {name: round(statistics.median(each), 1) for name, each in rates.items()},
                "batch_over_one_by_one": ratio_summary(rates["batch"], rates["one by one"]),
                "document_tokens": options.document_tokens,
                "questions": options.questions,
                "seconds_with_one_question": round(statistics.median(read), 2),
                "seconds_with_all_questions": round(statistics.median(asked), 2),
                "all_over_one": ratio_summary(asked, read),
            }
        )
    )


@contextmanager
def _served(artifact: Path, threads: int | None, settings: RuntimeSettings) -> Iterator[int]:
    """The port of a server of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    options = ["--max-model-len", str(settings.max_model_len), *(["--threads", str(threads)] if threads else [])]
    command = [word.replace(PORT, str(port)) for word in serve_command(artifact, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            next(line for line in process.stdout if line.startswith("Serving"))
            yield port
        finally:
            process.terminate()


def _one_by_one(port: int, work: Sequence[Work]) -> float:
    """Tokens a second, of prompts and answers."""
    tokens, began = 0, time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    for each in work:
        connection.request("POST", each.path, each.body, {"content-type": "application/json"})
        tokens += json.loads(connection.getresponse().read())["usage"]["total_tokens"]
    connection.close()
    return tokens / (time.perf_counter() - began)


def _document(app: Starlette, host: ModelHost, chat: ChatOptions, tokens: int, count: int, name: str) -> float:
    """Seconds to answer questions about a new document. Answers have one token: the reading is measured."""
    tokenizer = host.ready_engine().tokenizer
    text = f"Document {name}. " + "Every word of it is read once. " * tokens
    while len(tokenizer.encode(text)) > tokens:
        text = text[: int(len(text) * max(0.5, tokens / len(tokenizer.encode(text)) * 0.999))]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "document.txt").write_text(text, encoding="utf-8")
        questions = [f"Question {number}: what does it say?" for number in range(count)]
        work = list(questions_about(Path(folder), questions, replace(chat, max_tokens=8, thinking=False)))
        seconds, progress = _timed(app, work, host.ready_engine().settings.max_num_seqs)
    print(f"{count} questions: {seconds:.2f} s, {progress.cached_tokens} of {progress.prompt_tokens} tokens found")
    return seconds


def _timed(app: Starlette, work: Sequence[Work | Refused], at_once: int) -> tuple[float, Progress]:
    with tempfile.TemporaryDirectory() as folder, Results(Path(folder) / "out", None) as results:
        run = BatchRun(app, iter(work), results, at_once=at_once)
        began = time.perf_counter()
        asyncio.run(run.run())
        seconds = time.perf_counter() - began
    assert not run.progress.failed, "a request failed: see above"
    return seconds, run.progress


if __name__ == "__main__":
    main()
