"""Mutated artifacts for the native operators, under sanitizers, through ONNX Runtime.

A tiny artifact is exported in several forms. Each trial changes its graph (shapes, offsets and lengths of weights,
attributes, operators, inputs) or its weight files (values, lengths), loads it and runs a few steps. It must end with an
answer or one of the runtime's errors. The trials run in a process into which the sanitizer is loaded, with a library
that was built for it; when that process dies, the last trial is reported, and a new process goes on after it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.runtime.artifact.file_names import is_weight_file
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.artifact.manifest import ArtifactError
from qwonnx.runtime.cache.hybrid_cache import HybridCache
from qwonnx.runtime.errors import QwonnxRuntimeError
from qwonnx.runtime.model.runner import ModelRunner
from qwonnx.runtime.model.session import Session
from qwonnx.runtime.native.library import DOMAIN, VARIABLE
from qwonnx.runtime.scheduling.sequence import Sequence as TokenSequence
from qwonnx.runtime.scheduling.sequence import StepPlan
from qwonnx.runtime.settings import RuntimeSettings
from tests.checkpoints import write_tiny

_GRAPH = "decoder.onnx"
_FORMS = (
    ExportOptions(weights="int4"),
    ExportOptions(weights="int8", kv="int8"),
    ExportOptions(weights="int4", activations="float32", kv="int4"),
)
_SIZES = (0, 1, 2, 3, 7, 8, 16, 31, 32, 64, 127, 128, 256, 4096, 1 << 20, 1 << 31, 1 << 40, (1 << 62) + 1, -1)
_MAX_MODEL_LEN = 96
_CHUNKS = (5, 1, 40, 1)  # of one prompt
_LIBRARY_NAME = "native"  # in a sanitizer's report: a frame of our library


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of all trials: how many gave logits, and how many were refused."""

    num_answered: int
    num_refused: int
    num_onnxruntime: int  # deaths of the process in which no frame is ours


def fuzz(library: Path, sanitizer: Path, seconds: float, seed: int) -> Outcome:
    """Run trials for so many seconds.

    Args:
        library: the native library, built with AddressSanitizer and UndefinedBehaviorSanitizer.
        sanitizer: AddressSanitizer's own library, to load first.

    Raises:
        SystemExit: a finding, after its report was printed.
    """
    answered = refused = foreign = 0
    with tempfile.TemporaryDirectory(prefix="qwonnx-fuzz-files-") as folder:
        _export(Path(folder))
        end = time.monotonic() + seconds
        environment = os.environ | {
            VARIABLE: str(library),
            "LD_PRELOAD": f"{sanitizer}:{_cxx_library()}",
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
        }
        while (left := end - time.monotonic()) > 0:
            command = [sys.executable, "-m", __spec__.name, folder, f"{left:.1f}", str(seed)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            trials = [(*line.split(" ", 2), "")[:3] for line in done.stdout.splitlines()]
            answered += sum(outcome == "answered" for _, outcome, _ in trials)
            refused += sum(outcome == "refused" for _, outcome, _ in trials)
            if done.returncode == 0:
                continue
            last = next((trial for trial in reversed(trials) if trial[1] == "begins"), None)
            ours = _LIBRARY_NAME in done.stderr or "Traceback" in done.stderr
            if last is None or ours:
                sys.exit(f"native_fuzz: files, {' '.join(last or ['start'])}\n{done.stderr[-8000:]}")
            foreign += 1
            seed = int(last[0]) + 1
    return Outcome(answered, refused, foreign)


def _export(folder: Path) -> None:
    checkpoint = write_tiny(folder / "checkpoint")
    for number, options in enumerate(_FORMS):
        export_checkpoint(checkpoint, folder / f"artifact-{number}", options)


def _cxx_library() -> str:
    """The C++ library's path, which must be loaded with the sanitizer, so that it sees C++ exceptions."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libstdc++.so" in line:
            return line.split()[-1]
    return "libstdc++.so.6"


def _child(folder: Path, seconds: float, seed: int) -> None:
    """Print a line when a trial begins and when it ends: its seed, what happened, what was changed."""
    artifacts = [open_artifact(folder / f"artifact-{number}") for number in range(len(_FORMS))]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rng = random.Random(seed)
        artifact = rng.choice(artifacts)
        with _copy(artifact) as copy:
            changed = "; ".join(_mutate(copy, rng) for _ in range(rng.choice((1, 1, 1, 2, 4))))
            print(seed, "begins", artifact.folder.name, changed, flush=True)
            try:
                _run(copy, artifact)
            except (QwonnxRuntimeError, ArtifactError) as error:
                print(seed, "refused", error, flush=True)
            else:
                print(seed, "answered", flush=True)
        seed += 1


@contextlib.contextmanager
def _copy(artifact: Artifact) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="qwonnx-fuzz-trial-") as folder:
        for path in artifact.folder.iterdir():
            if path.name == _GRAPH or is_weight_file(path.name):
                shutil.copy(path, folder)
        yield Path(folder)


def _mutate(folder: Path, rng: random.Random) -> str:
    """Change one thing; returns what."""
    return rng.choice((_change_weight, _change_weight, _change_node, _change_node, _change_bytes))(folder, rng)


def _change_weight(folder: Path, rng: random.Random) -> str:
    model = onnx.load(folder / _GRAPH, load_external_data=False)
    used = {name for node in model.graph.node if node.domain == DOMAIN for name in node.input}
    weight = rng.choice([tensor for tensor in model.graph.initializer if tensor.name in used])
    dims, place = list(weight.dims), {entry.key: entry for entry in weight.external_data}
    kind = rng.choice(("shape", "order", "offset", "length", "type", "inline"))
    if kind == "shape" and dims:
        dims[rng.randrange(len(dims))] = rng.choice((*_SIZES, *(size + 1 for size in dims), *dims))
    elif kind == "order":
        rng.shuffle(dims)
    elif kind == "type":
        weight.data_type = rng.choice((1, 2, 3, 7, 10, 11, 16))
    elif kind in place:
        place[kind].value = str(rng.choice((*_SIZES, int(place[kind].value) + rng.choice((-64, -1, 1, 64)))))
    elif place:  # a buffer of its own: the sanitizer sees each byte beyond its end
        data = (folder / place["location"].value).read_bytes()
        offset, length = (int(place[key].value) for key in ("offset", "length"))
        weight.ClearField("external_data")
        weight.data_location = onnx.TensorProto.DEFAULT
        weight.raw_data = data[offset : offset + length]
    weight.ClearField("dims")
    weight.dims.extend(dims)
    (folder / _GRAPH).write_bytes(model.SerializeToString())
    return f"{kind} of {weight.name} {dims}"


def _change_node(folder: Path, rng: random.Random) -> str:
    model = onnx.load(folder / _GRAPH, load_external_data=False)
    node = rng.choice([node for node in model.graph.node if node.domain == DOMAIN])
    others = [other for other in model.graph.node if other.domain == DOMAIN]
    kind = rng.choice(("attribute", "attribute", "input", "no input", "operator", "no attribute"))
    if kind == "attribute" and node.attribute:
        attribute = rng.choice(list(node.attribute))
        if attribute.type == onnx.AttributeProto.INT:
            attribute.i = rng.choice((*_SIZES, attribute.i + 1, attribute.i - 1, attribute.i * 2))
        elif attribute.type == onnx.AttributeProto.FLOAT:
            attribute.f = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))
    elif kind == "no attribute" and node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]
    elif kind == "input":
        node.input[rng.randrange(len(node.input))] = rng.choice(
            [name for other in (node, *others) for name in other.input]
        )
    elif kind == "no input":
        if rng.random() < 0.5:
            node.input[rng.randrange(len(node.input))] = ""
        else:
            del node.input[rng.randrange(len(node.input))]
    elif kind == "operator":
        node.op_type = rng.choice([other.op_type for other in others])
    (folder / _GRAPH).write_bytes(model.SerializeToString())
    return f"{kind} of {node.name or node.output[0]}"


def _change_bytes(folder: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(path for path in folder.iterdir() if is_weight_file(path.name)))
    data = bytearray(path.read_bytes())
    if rng.random() < 0.2:
        length = rng.randrange(len(data))
        path.write_bytes(data[:length])
        return f"{path.name} cut to {length}"
    start = rng.randrange(len(data))
    size = min(rng.choice((1, 4, 64, 4096, 1 << 20)), len(data) - start)
    data[start : start + size] = rng.choice((rng.randbytes(size), b"\xff" * size, b"\x00" * size, b"\x7f" * size))
    path.write_bytes(data)
    return f"{size} bytes of {path.name} at {start}"


def _run(folder: Path, artifact: Artifact) -> None:
    """One row through chunks and single tokens, as the engine runs it."""
    spec = artifact.decoder
    session = Session(folder / _GRAPH, RuntimeSettings(num_threads=1, kernels="native"), spec.native_operators)
    cache = HybridCache(spec.states, 1, _MAX_MODEL_LEN)
    vocab_size = artifact.manifest.model.vocab_size
    runner = ModelRunner(session, spec.states, cache, 1, max(_CHUNKS), vocab_size)
    sequence = TokenSequence("fuzz", [7] * (sum(_CHUNKS) + 1), sum(_CHUNKS))
    for width in _CHUNKS:
        runner.run(StepPlan(0, (sequence,), width, wants_logits=True))
        sequence.num_computed += width


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The process in which trials run; infra.native_fuzz starts it.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed", type=int)
    options = parser.parse_args(arguments)
    _child(options.folder, options.seconds, options.seed)


if __name__ == "__main__":
    main()
