"""Four layers of a published size with random weights: loading, prompts, decoding steps, and the memory that they take.

A decoding step cannot be faster than its bytes can be read. The share of that limit is against the rate at which the
device copied memory (the check device/copy).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median

import numpy as np

from infra.gpu.on_device.device import read_rate
from infra.gpu.on_device.finding import Bundle, Check, Finding
from infra.gpu.on_device.steps import Steps
from infra.gpu.seeded_weights import SeededWeights, fill
from qwonnx.runtime.artifact.manifest import StateSpec, read_manifest
from qwonnx.runtime.cache.rows import is_growing, row_bytes

PLAN_JSON = "plan.json"
_LEAST_SHARE = 0.45  # of the limit, at batch 1 with replayed steps
_EAGER_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        prompts: tokens of prompts that are read in one step.
        batches: rows of decoding steps.
        past: tokens of each row before the first decoding step.
        tokens: decoding steps of each batch.
    """

    prompts: Sequence[int]
    batches: Sequence[int]
    past: int
    tokens: int

    def save(self, folder: Path) -> None:
        (folder / PLAN_JSON).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Plan:
        return cls(**json.loads((folder / PLAN_JSON).read_text(encoding="utf-8")))


def checks(bundle: Bundle) -> Iterator[Check]:
    for folder in sorted(path.parent for path in (bundle.folder / "geometry").glob(f"*/{PLAN_JSON}")):
        model = _Geometry(bundle, folder)
        name = f"geometry/{folder.name}"
        yield Check(f"{name}/load", model.load)
        yield Check(f"{name}/eager", model.eager)
        yield Check(f"{name}/capture", model.capture)
        for batch in model.plan.batches:
            yield Check(f"{name}/decode {batch}", partial(model.decode, batch))
        for length in model.plan.prompts:
            yield Check(f"{name}/prompt {length}", partial(model.prompt, length))


class _Geometry:
    """One artifact. The first check that needs its steps loads it."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self._bundle, self._folder, self.plan = bundle, folder, Plan.load(folder)
        self._eager: list[int] = []

    def load(self) -> Finding:
        start = time.perf_counter()
        written = fill(self._folder)
        filled = time.perf_counter()
        steps = self._steps
        loaded = time.perf_counter()
        figures = {"weights_bytes": written, "fill_seconds": filled - start, "load_seconds": loaded - filled}
        figures["used_bytes"] = self._used_bytes(steps)
        return Finding(True, f"{written / 1e9:.2f} GB of weights in {loaded - filled:.1f} s", figures)

    def eager(self) -> Finding:
        """One row without replay. Its first step of each size also times the ways to multiply experts."""
        steps = self._steps
        start = time.perf_counter()
        logits = steps.read(self._prompt(0))
        first = time.perf_counter() - start
        finite = bool(np.isfinite(logits).all())
        seconds = []
        for _ in range(_EAGER_TOKENS):
            finite &= bool(np.isfinite(steps.decode()).all())
            seconds.append(steps.seconds)
        (self._eager,) = steps.answers()
        steps.clear()
        figures = {"first_prompt_seconds": first, "step_milliseconds": 1e3 * median(seconds)}
        detail = f"{figures['step_milliseconds']:.3f} ms a step" + ("" if finite else ", and logits are not finite")
        return self._bundle.judged(finite, detail, figures)

    def capture(self) -> Finding:
        """Replayed steps choose the tokens of eager ones."""
        start = time.perf_counter()
        number = self._ready().num_captured
        seconds = time.perf_counter() - start
        self._steps.read(self._prompt(0))
        for _ in range(_EAGER_TOKENS):
            self._steps.decode()
        (replayed,) = self._steps.answers()
        self._steps.clear()
        equal = sum(one == other for one, other in zip(replayed, self._eager, strict=False))
        detail = f"{number} graphs in {seconds:.1f} s; {equal} of {len(replayed)} tokens are those of eager steps"
        passed = equal == len(replayed) == len(self._eager)
        figures = {"capture_seconds": seconds, "equal": equal / len(replayed)}
        return self._bundle.judged(passed, detail, figures | {"used_bytes": self._used_bytes(self._steps)})

    def decode(self, batch: int) -> Finding:
        steps = self._ready()
        for row in range(batch):
            steps.read(self._prompt(row))
        seconds = []
        for _ in range(self.plan.tokens):
            steps.decode()
            seconds.append(steps.seconds)
        steps.clear()
        step = median(seconds)
        num_bytes = self._weights.bytes_read(batch) + batch * self._state_bytes
        figures = {
            "step_milliseconds": 1e3 * step,
            "tokens_per_second": batch / step,
            "bytes": num_bytes,
            "bytes_per_second": num_bytes / step,
        }
        detail = f"{1e3 * step:.3f} ms a step, {batch / step:.0f} tokens/s, {num_bytes / step / 1e9:.0f} GB/s"
        if (rate := read_rate(self._bundle.folder)) is not None:
            figures["share_of_copy_rate"] = share = num_bytes / step / rate
            detail += f", {share:.0%} of the device's copy rate"
            return self._bundle.judged(batch > 1 or share >= _LEAST_SHARE, detail, figures)
        return Finding(True, detail, figures)

    def prompt(self, length: int) -> Finding:
        steps = self._ready()
        seconds = []
        for _ in range(4):  # the first of a size is slower
            steps.read(self._prompt(0, length))
            seconds.append(steps.seconds)
            steps.clear()
        best = min(seconds[1:])
        figures = {"first_seconds": seconds[0], "seconds": best, "tokens_per_second": length / best}
        return Finding(True, f"{1e3 * best:.1f} ms, {length / best:.0f} tokens/s", figures)

    def _used_bytes(self, steps: Steps) -> int:
        """Of the device's memory, by anyone."""
        assert steps.device is not None
        memory = steps.device.memory()
        return memory.total_bytes - memory.free_bytes

    @cached_property
    def _weights(self) -> SeededWeights:
        return SeededWeights.load(self._folder)

    @cached_property
    def _states(self) -> Sequence[StateSpec]:
        (graph,) = read_manifest(self._folder).graphs.values()
        return graph.states

    @property
    def _state_bytes(self) -> int:
        """Bytes that a step moves for a row: fixed states are read and written, keys and values are read."""
        length = self.plan.past + self.plan.tokens // 2
        return sum((1 if is_growing(state) else 2) * row_bytes(state, length) for state in self._states)

    @cached_property
    def _steps(self) -> Steps:
        """Loaded; the weight files are made if an earlier process has not."""
        if not all((self._folder / tensor.file).is_file() for tensor in self._weights.tensors):
            fill(self._folder)
        longest = max(*self.plan.prompts, self.plan.past + self.plan.tokens)
        return Steps(self._folder, max(self.plan.batches), longest + 1)

    def _ready(self) -> Steps:
        """With graphs of its decoding steps."""
        if not self._steps.num_captured:
            self._steps.capture()
        return self._steps

    def _prompt(self, row: int, length: int | None = None) -> list[int]:
        random = np.random.default_rng(row)
        return [int(each) for each in random.integers(0, self._steps.vocab_size, length or self.plan.past)]
