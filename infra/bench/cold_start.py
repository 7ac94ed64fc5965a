"""The start of `qwonnx serve`: seconds to the first streamed text, its phases, and memory, by kernels.

    python -m infra.bench.cold_start ARTIFACT [--rounds 5] [--threads 2] [--llama-server PROGRAM --gguf FILE]

Each round starts a server with native kernels and one with ONNX Runtime's (and llama.cpp's), one after the other, asks
a short question, and waits for the first piece of text. The weights are in the page cache. The clock starts before the
process does. Then two servers of one kind run at once: their PSS counts shared pages by halves. Memory is read from
/proc (Linux). The results are medians. The last line is JSON; infra.bench.waterfall draws it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnxruntime

from infra.bench.measured import ratio_summary
from infra.bench.plan_memory import Measured, read_maps
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.native.kernels import Kernels

_QUESTION = "What is Germany called in Swahili?"
_PHASE = re.compile(r"([a-z-]+) (\d+\.\d+)")
_PEER = "llama-server"
_READY_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds from the process's beginning, seconds of each phase, memory after the first text."""

    pid: int
    listening_s: float
    ready_s: float
    first_text_s: float
    phases: dict[str, float]
    memory: Measured


Starting = Callable[[], AbstractContextManager[Start]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-server", type=Path, help="the program")
    parser.add_argument("--gguf", type=Path, help="the same checkpoint for it")
    options = parser.parse_args(arguments)
    if (options.llama_server is None) != (options.gguf is None):
        parser.error("--llama-server and --gguf go together")
    artifact = open_artifact(options.artifact)
    for path in [*sorted(artifact.folder.glob("*.bin")), *([options.gguf] if options.gguf else [])]:
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    kinds: dict[str, Starting] = {
        kind.value: partial(server, options.artifact, kind, options.threads)
        for kind in (Kernels.NATIVE, Kernels.ONNXRUNTIME)
    }
    if options.llama_server:
        kinds[_PEER] = partial(peer, options.llama_server, options.gguf, options.threads)
    starts: dict[str, list[Start]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind, starting in kinds.items():
            with starting() as start:
                starts[kind].append(start)
            print(kind, f"first text {start.first_text_s:.3f} s, anonymous {start.memory.anonymous / 1e6:,.0f} MB")
    results = {kind: _summary(each) | _two_servers(kinds[kind]) for kind, each in starts.items()}
    ours = [start.first_text_s for start in starts[Kernels.NATIVE.value]]
    print(
        json.dumps(
            {
                "benchmark": "cold_start",
                "processor": platform.processor() or platform.machine(),
                "onnxruntime": onnxruntime.__version__,
                "threads": options.threads,
                "rounds": options.rounds,
                "weight_bytes": sum(entry.size for entry in artifact.manifest.files if entry.path.endswith(".bin")),
                "kernels": results,
                "first_text_over": {
                    kind: ratio_summary(ours, [start.first_text_s for start in each])
                    for kind, each in starts.items()
                    if kind != Kernels.NATIVE.value
                },
            }
        )
    )


@contextmanager
def server(artifact: Path, kernels: Kernels, threads: int) -> Iterator[Start]:
    """A server that has answered once."""
    command = [sys.executable, "-c", "from qwonnx.handlers.cli.main import main; main()", "serve", str(artifact)]
    command += ["--port", "0", "--threads", str(threads), "--kernels", kernels, "--model-name", "started"]
    environment = {**os.environ, "QWONNX_SPIN": "0", "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installation has compiled modules
    with tempfile.TemporaryFile("w+") as log:
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process:
            try:
                assert process.stdout is not None
                loading = next(process.stdout)
                assert loading.startswith("Loading"), loading
                listening = time.perf_counter() - began
                url = next(found[0] for line in process.stdout if (found := re.search(r"http://\S+/v1", line)))
                ready = time.perf_counter() - began
                _first_text(url)
                first = time.perf_counter() - began
                log.seek(0)
                (line,) = (line for line in log if "ready, after seconds of" in line)
                phases = {name: float(seconds) for name, seconds in _PHASE.findall(line.partition("of: ")[2])}
                yield Start(process.pid, listening, ready, first, phases, read_maps(process.pid))
            finally:
                process.kill()


@contextmanager
def peer(program: Path, gguf: Path, threads: int) -> Iterator[Start]:
    """llama.cpp's server, after it has answered once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(program), "-m", str(gguf), "--jinja", "-np", "1", "-c", "4096", "--port", str(port)]
    command += ["-t", str(threads), "-tb", str(threads)]
    url = f"http://127.0.0.1:{port}"
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            listening = _answering(url, process, began, ready=False)
            ready = _answering(url, process, began, ready=True)
            _first_text(f"{url}/v1")
            first = time.perf_counter() - began
            yield Start(process.pid, listening, ready, first, {}, read_maps(process.pid))
        finally:
            process.kill()


def _answering(url: str, process: subprocess.Popen[bytes], began: float, *, ready: bool) -> float:
    """Seconds until it answers at all, or until it says that it is ready."""
    while time.perf_counter() - began < _READY_SECONDS and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return time.perf_counter() - began
        except urllib.error.HTTPError:  # 503: it loads
            if not ready:
                return time.perf_counter() - began
        except OSError:
            pass
        time.sleep(0.002)
    raise SystemExit(f"llama-server does not start, or not within {_READY_SECONDS:.0f} s")


def _first_text(url: str) -> None:
    body = {
        "model": "started",
        "messages": [{"role": "user", "content": _QUESTION}],
        "chat_template_kwargs": {"enable_thinking": False},
        "max_tokens": 4,
        "stream": True,
    }
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        for line in answer:
            text = line.decode().removeprefix("data: ").strip()
            if text.startswith("{"):
                (choice,) = json.loads(text)["choices"] or [{"delta": {}}]
                said = choice["delta"].get("content") or choice["delta"].get("reasoning_content")
                if said or choice.get("finish_reason"):
                    return
    raise SystemExit("the server sent no text")


def _summary(starts: Sequence[Start]) -> dict[str, object]:
    def median(values: Iterator[float]) -> float:
        return round(statistics.median(values), 4)

    return {
        "listening_s": median(start.listening_s for start in starts),
        "ready_s": median(start.ready_s for start in starts),
        "first_text_s": median(start.first_text_s for start in starts),
        "phases_s": {name: median(start.phases[name] for start in starts) for name in starts[0].phases},
        "anonymous_bytes": median(start.memory.anonymous for start in starts),
        "weight_pages_bytes": median(start.memory.weight_files for start in starts),
    }


def _two_servers(starting: Starting) -> dict[str, object]:
    with ExitStack() as stack:
        starts = [stack.enter_context(starting()) for _ in range(2)]
        return {"two_servers_pss_bytes": sum(read_maps(start.pid).proportional for start in starts)}


if __name__ == "__main__":
    main()
