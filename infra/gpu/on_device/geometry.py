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
from qwonnx.runtime.sampling.logits import RowLogits

PLAN_JSON = "plan.json"
_LEAST_SHARE = 0.45  # of the limit, at batch 1 with replayed steps
_ANSWER_TOKENS = 16


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


@dataclass(frozen=True, slots=True)
class _Answer:
    """Tokens of one row, whether all logits were finite, and seconds of its prompt and of the median step."""

    tokens: list[int]
    is_finite: bool
    first_seconds: float
    step_seconds: float


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
        eager = self._eager
        figures = {"first_prompt_seconds": eager.first_seconds, "step_milliseconds": 1e3 * eager.step_seconds}
        detail = f"{1e3 * eager.step_seconds:.3f} ms a step"
        detail += "" if eager.is_finite else ", and logits are not finite"
        return self._bundle.judged(eager.is_finite, detail, figures)

    def capture(self) -> Finding:
        """Replayed steps choose the tokens of eager ones."""
        eager = self._eager
        start = time.perf_counter()
        steps = self._ready()
        seconds = time.perf_counter() - start
        replayed = self._tokens(steps).tokens
        equal = sum(map(int.__eq__, replayed, eager.tokens))
        detail = f"{steps.num_captured} graphs in {seconds:.1f} s"
        detail += f"; {equal} of {len(replayed)} tokens are those of eager steps"
        figures = {"capture_seconds": seconds, "equal": equal / len(replayed)}
        figures["used_bytes"] = self._used_bytes(steps)
        return self._bundle.judged(equal == len(replayed), detail, figures)

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

    @cached_property
    def _eager(self) -> _Answer:
        assert not self._steps.num_captured, "its steps would be replayed"
        return self._tokens(self._steps)

    def _tokens(self, steps: Steps) -> _Answer:
        """Read a prompt, and choose tokens."""
        start = time.perf_counter()
        finite = _is_finite(steps.read(self._prompt(0)))
        first, seconds = time.perf_counter() - start, []
        for _ in range(_ANSWER_TOKENS):
            finite &= _is_finite(steps.decode())
            seconds.append(steps.seconds)
        (tokens,) = steps.answers()
        steps.clear()
        return _Answer(tokens, finite, first, median(seconds))

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


def _is_finite(rows: Sequence[RowLogits]) -> bool:
    return all(np.isfinite(row.read_all()).all() for row in rows)
