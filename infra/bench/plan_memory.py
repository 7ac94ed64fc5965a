"""Compares the memory that `qwonnx plan` predicts with that of a server that has read a prompt.

    python -m infra.bench.plan_memory ARTIFACT --checkpoint FOLDER [--recipe balanced] [--prompt-tokens 4096]
                                      [--threads 2]

Starts `qwonnx serve`, sends one chat request whose prompt has about so many tokens, and reads the process's maps:
anonymous memory (packed weights, states, work buffers, the process itself), pages of weight files, and pages of other
files. The plan uses the checkpoint's config.json and the artifact's recipe, for the tokens that the server has counted.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.planning.artifact_size import CopiedFiles
from qwonnx.export.planning.plan import Assumptions, make_plan
from qwonnx.export.planning.resident_memory import MemoryUse, Serving
from qwonnx.export.planning.source import open_source
from qwonnx.export.planning.stored_model import NamedRecipe, named_recipe
from qwonnx.export.quantization.recipe import SHIPPED, Recipe
from qwonnx.export.targets.register import choose_target
from qwonnx.runtime.artifact.manifest import Manifest, read_manifest
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.settings import RuntimeSettings
from qwonnx.runtime.text.tokenizer import Tokenizer

_ANSWER_TOKENS = 8
_MAP = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)")
_FIELD = re.compile(r"(Rss|Pss|Anonymous|AnonHugePages):\s+(\d+) kB")


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes of a process's memory."""

    resident: int
    proportional: int  # pages that other processes share are divided among them
    anonymous: int
    huge_pages: int  # of the anonymous
    weight_files: int
    other_files: int


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder with the config.json it came from")
    parser.add_argument("--recipe", choices=SHIPPED, help="that the artifact was made by; by default a preset alone")
    parser.add_argument("--prompt-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kernels", type=Kernels, choices=list(Kernels)[1:], default=Kernels.NATIVE)
    options = parser.parse_args(arguments)
    manifest = read_manifest(options.artifact)
    text = _text(options.artifact, options.prompt_tokens)
    command = [sys.executable, "-c", "from qwonnx.handlers.cli.main import main; main()", "serve"]
    command += [str(options.artifact), "--port", "0", "--threads", str(options.threads), "--model-name", "planned"]
    command += ["--kernels", options.kernels]
    environment = {**os.environ, "QWONNX_SPIN": "0", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            url = _url(server)
            loaded = read_maps(server.pid)
            started = time.perf_counter()
            num_tokens = _ask(url, text)
            seconds = time.perf_counter() - started
            measured = read_maps(server.pid)
        finally:
            server.kill()
    planned = plan_for(manifest, options, num_tokens)
    _print(loaded, measured, planned, num_tokens, seconds)
    print(json.dumps(_summary(options, manifest, measured, planned, num_tokens)))


def plan_for(manifest: Manifest, options: argparse.Namespace, num_tokens: int) -> MemoryUse:
    """The planned memory of a server that holds one sequence of `num_tokens` tokens."""
    facts = manifest.quantization
    if options.recipe is None:
        named = NamedRecipe(facts.weights, Recipe.preset(facts.weights, facts.weight_block_size or 128), "")
    else:
        named = named_recipe(options.recipe)
    rules = tuple((rule.pattern, rule.bits) for rule in named.recipe.rules)
    assert rules == facts.recipe, "the artifact was made by another recipe: name it with --recipe"
    assumptions = Assumptions(
        choice=choose_target(manifest.target, facts.activations),
        serving=Serving(
            context=num_tokens,
            sequences=1,
            kv=KvType.FLOAT32,
            chunk_tokens=RuntimeSettings().max_num_batched_tokens,
            num_threads=options.threads,
            kernels=options.kernels,
        ),
        bandwidth=None,
    )
    copied = CopiedFiles.of_folder(options.artifact)
    assert copied is not None, "an artifact has a tokenizer"
    plan = make_plan(open_source(str(options.checkpoint)).config, [named], assumptions, copied)
    use = plan.recipes[0].memory_at(num_tokens)
    assert isinstance(use, MemoryUse), "the artifact is for a card, whose memory this does not measure"
    return use


def read_maps(pid: int) -> Measured:
    """Sums over /proc/PID/smaps."""
    sums: defaultdict[str, int] = defaultdict(int)
    kind = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if field := _FIELD.match(line):
            size = int(field[2]) * 1024
            sums[field[1]] += size
            if field[1] in ("Rss", "Anonymous"):
                sums[f"{kind}.{field[1]}"] += size
        elif mapping := _MAP.fullmatch(line):
            path = mapping[1]
            kind = "weights" if re.search(r"/weights-\S+\.bin$", path) else "file" if path.startswith("/") else "none"
    return Measured(
        resident=sums["Rss"],
        proportional=sums["Pss"],
        anonymous=sums["Anonymous"],
        huge_pages=sums["AnonHugePages"],
        weight_files=sums["weights.Rss"] - sums["weights.Anonymous"],
        other_files=sums["file.Rss"] - sums["file.Anonymous"],
    )


def _text(artifact: Path, num_tokens: int) -> str:
    """Words of the test corpus, in a changing order, with about `num_tokens` tokens."""
    words = (Path(__file__).parents[2] / "tests" / "checkpoints" / "corpus.txt").read_text(encoding="utf-8").split()
    tokenizer = Tokenizer.from_file(artifact / "tokenizer.json")
    tokens_per_word = len(tokenizer.encode(" ".join(words))) / len(words)
    count = max(1, int((num_tokens - 16) / tokens_per_word))
    return " ".join(words[(7 * index + index // len(words)) % len(words)] for index in range(count))


def _url(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"http://\S+/v1", line):
            return found[0]
    raise SystemExit("the server did not start")


def _ask(url: str, text: str) -> int:
    """Send the request, and return the final number of tokens of the sequence."""
    body = {"model": "planned", "messages": [{"role": "user", "content": text}], "max_tokens": _ANSWER_TOKENS}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=3600) as answer:
        return int(json.load(answer)["usage"]["total_tokens"])


def _print(loaded: Measured, measured: Measured, planned: MemoryUse, num_tokens: int, seconds: float) -> None:
    print(f"{num_tokens} tokens in {seconds:.0f} s")
    for title, value in (("loaded", loaded), ("after the request", measured)):
        print(f"{title}: " + ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in asdict(value).items()))
    parts = {name: size for name, size in asdict(planned).items() if name != "context"}
    print("planned: " + ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in parts.items()))


def _summary(
    options: argparse.Namespace, manifest: Manifest, measured: Measured, planned: MemoryUse, num_tokens: int
) -> dict[str, object]:
    mapped = planned.mapped_weights + planned.read_once_weights + planned.embedding
    return {
        "benchmark": "plan_memory",
        "artifact": options.artifact.name,
        "weights": manifest.quantization.weights,
        "target": manifest.target,
        "tokens": num_tokens,
        "threads": options.threads,
        "measured": asdict(measured),
        "planned": {**asdict(planned), "required": planned.required, "resident": planned.resident},
        "resident_error": round(planned.resident / measured.resident - 1, 4),
        "weight_files_error": round(mapped / measured.weight_files - 1, 4) if measured.weight_files else None,
        "other_error": round((planned.resident - mapped) / (measured.resident - measured.weight_files) - 1, 4),
    }


if __name__ == "__main__":
    main()
