"""The start of `qwonnx serve`: seconds to the first streamed text, its phases, and memory, by kernels.

    python -m infra.bench.cold_start ARTIFACT [--rounds 5] [--threads 2]

Each round starts a server with native kernels and one with ONNX Runtime's, one after the other, asks a short question,
and waits for the first piece of text. The weights are in the page cache. The clock starts before the process does. Then
two servers of one kind run at once: their PSS counts shared pages by halves. Memory is read from /proc (Linux). The
results are medians. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from infra.bench.plan_memory import Measured, read_maps
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.native.kernels import Kernels

KINDS = (Kernels.NATIVE, Kernels.ONNXRUNTIME)
_QUESTION = "What is Germany called in Swahili?"
_PHASE = re.compile(r"([a-z-]+) (\d+\.\d+)")


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds from the process's beginning, seconds of each phase, memory after the first text."""

    pid: int
    listening_s: float
    ready_s: float
    first_text_s: float
    phases: dict[str, float]
    memory: Measured


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    artifact = open_artifact(options.artifact)
    for path in sorted(artifact.folder.glob("*.bin")):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    starts: dict[Kernels, list[Start]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind in KINDS:
            with server(options.artifact, kind, options.threads) as start:
                starts[kind].append(start)
            print(kind, f"first text {start.first_text_s:.3f} s, anonymous {start.memory.anonymous / 1e6:,.0f} MB")
    results = {kind.value: _summary(each) for kind, each in starts.items()}
    for kind in KINDS:
        results[kind.value] |= _two_servers(options.artifact, kind, options.threads)
    ours, theirs = (results[kind.value]["first_text_s"] for kind in KINDS)
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
                "first_text_over_onnxruntime": round(ours / theirs, 3),
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


def _summary(starts: Sequence[Start]) -> dict[str, float]:
    def median(values: Iterator[float]) -> float:
        return round(statistics.median(values), 4)

    return {
        "listening_s": median(start.listening_s for start in starts),
        "ready_s": median(start.ready_s for start in starts),
        "first_text_s": median(start.first_text_s for start in starts),
        **{f"{name}_s": median(start.phases[name] for start in starts) for name in starts[0].phases},
        "anonymous_bytes": median(start.memory.anonymous for start in starts),
        "weight_pages_bytes": median(start.memory.weight_files for start in starts),
    }


def _two_servers(artifact: Path, kernels: Kernels, threads: int) -> dict[str, float]:
    with ExitStack() as stack:
        starts = [stack.enter_context(server(artifact, kernels, threads)) for _ in range(2)]
        return {"two_servers_pss_bytes": sum(read_maps(start.pid).proportional for start in starts)}


if __name__ == "__main__":
    main()
