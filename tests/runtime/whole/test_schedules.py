"""Random schedules against each request by itself: arrivals, lengths, aborts, limits, prefix hits, preemptions.

An answer must not depend on other requests, on how its prompt was cut, on restored states, or on preemptions. The
reference is one request at a time, with its prompt in one chunk and without a prefix cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.miniature.checkpoint import TRAINED
from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.targets.register import choose_target
from qwonnx.runtime.cache.buffers import BuffersFactory
from qwonnx.runtime.cache.host_buffers import HostBuffers
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason
from qwonnx.runtime.model.runner import ModelRunner
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.sampling.logits import RowLogits
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.scheduling import scheduler
from qwonnx.runtime.scheduling.row_budget import settle
from qwonnx.runtime.scheduling.sequence import StepPlan
from qwonnx.runtime.settings import RuntimeSettings
from tests.runtime.counting_model import make
from tests.runtime.engine.engine_driver import Received
from tests.runtime.strict_buffers import StrictBuffers

NUM_SCHEDULES = int(os.environ.get("QWONNX_TEST_SCHEDULES", "400"))  # of the counting model, which is fast
NUM_STRICT_SCHEDULES = NUM_SCHEDULES // 4  # with rows that only their buffers can read: each step copies them
MAX_MODEL_LEN = 96
ENGINES = RuntimeSettings(num_threads=1, max_model_len=MAX_MODEL_LEN, max_queued_requests=64)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request.

    Attributes:
        after: steps since the one before it.
        beginning: index of the shared text, and how many tokens of it.
        own: seed and number of the tokens that follow.
        max_tokens: of the answer.
        seed: of the sampling; None is greedy.
        aborted_after: steps after its arrival, or None.
        snapshot: whether snapshot_at has the end of the beginning.
    """

    after: int
    beginning: tuple[int, int]
    own: tuple[int, int]
    max_tokens: int
    seed: int | None
    aborted_after: int | None
    snapshot: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the engine: rows, tokens of a chunk, tokens that fit the rows' bytes, snapshots that fit the cache."""

    rows: int
    chunk: int
    tokens: int
    snapshots: int


ARRIVALS = st.builds(
    Arrival,
    after=st.integers(0, 6),
    beginning=st.tuples(st.integers(0, 1), st.integers(0, 24)),
    own=st.tuples(st.integers(0, 3), st.integers(1, 9)),
    max_tokens=st.integers(1, 40),
    seed=st.one_of(st.none(), st.integers(0, 2)),
    aborted_after=st.one_of(st.none(), st.none(), st.integers(0, 30)),
    snapshot=st.booleans(),
)
LIMITS = st.builds(
    Limits,
    rows=st.sampled_from([1, 2, 4]),
    chunk=st.sampled_from([1, 5, 64]),
    tokens=st.sampled_from([MAX_MODEL_LEN, 150, 10_000]),
    snapshots=st.sampled_from([0, 3, 100]),
)


class Model:
    """An artifact, the engines that tests share (opening one takes longer than a schedule), and reference answers.

    Args:
        top_k: of requests with a seed. In a batch, a real model's logits differ by 1e-6, a fifth of an unlikely token's
            probability, so with all tokens a draw may change. None if logits are exact.
        make_buffers: makes the memory of rows, except for the reference.
        kernels: that its engines use.
    """

    def __init__(
        self,
        folder: Path,
        top_k: int | None = None,
        make_buffers: BuffersFactory = HostBuffers,
        kernels: Kernels = Kernels.AUTO,
    ) -> None:
        self.folder, self.top_k, self.make_buffers = folder, top_k, make_buffers
        self._settings = replace(ENGINES, kernels=kernels)
        self.engine = cache(self._open)
        self.alone = cache(self._alone)
        self._plain = Engine.open(
            folder, replace(self._settings, max_num_seqs=1, max_num_batched_tokens=MAX_MODEL_LEN, prefix_cache_bytes=0)
        )
        states = self._plain.artifact.decoder.states
        self._budget = settle(states, ENGINES, MAX_MODEL_LEN)[0]
        # Tokens by which real texts differ, without special ones.
        encoded = self._plain.tokenizer.encode("the box in a fox and 日本 é then over Ж under")
        self._tokens = [token for token in encoded if token not in self._plain.eos_token_ids]

    def prompt(self, arrival: Arrival) -> tuple[int, ...]:
        text, length = arrival.beginning
        number, own = arrival.own
        beginning = [self._tokens[(i * (text + 2) + i // 5) % len(self._tokens)] for i in range(length)]
        return (*beginning, *(self._tokens[(i * 3 + number) % len(self._tokens)] for i in range(own)))

    def _open(self, limits: Limits) -> Engine:
        budget = self._budget
        segment = budget.bytes_of(16)
        settings = replace(
            self._settings,
            max_num_seqs=limits.rows,
            max_num_batched_tokens=limits.chunk,
            cache_bytes=limits.rows * budget.bytes_per_row + limits.tokens * budget.bytes_per_token,
            prefix_cache_bytes=limits.snapshots * segment,
        )
        return Engine.open(self.folder, settings, make_buffers=self.make_buffers)

    def _alone(self, prompt: tuple[int, ...], params: SamplingParams) -> tuple[list[int], FinishReason | None]:
        received = Received()
        self._plain.submit(prompt, params, received)
        while received.reason is None:
            self._plain.step()
        return received.tokens, received.reason


def run(model: Model, arrivals: Sequence[Arrival], limits: Limits) -> int:
    """Play a schedule, check everything, and return the number of preemptions."""
    engine = model.engine(limits)
    preempted_before = engine.metrics().preemptions
    asked: list[tuple[tuple[int, ...], SamplingParams, Received]] = []
    aborts: dict[int, list[str]] = {}
    due: dict[int, list[int]] = {}
    step = 0
    for number, arrival in enumerate(arrivals):
        step += arrival.after
        due.setdefault(step, []).append(number)
    last = step
    step = 0
    while step <= last or engine.num_live_requests:
        for number in due.pop(step, []):
            arrival = arrivals[number]
            params = SamplingParams(
                temperature=0 if arrival.seed is None else 1,
                top_k=model.top_k,
                seed=arrival.seed,
                max_tokens=arrival.max_tokens,
            )
            asked.append((model.prompt(arrival), params, Received()))
            name = engine.submit(*asked[-1], snapshot_at=[arrival.beginning[1]] if arrival.snapshot else [])
            if arrival.aborted_after is not None:
                aborts.setdefault(step + arrival.aborted_after, []).append(name)
        for name in aborts.pop(step, []):
            engine.abort(name)
        engine.step()
        assert engine.check() == []
        step += 1
        assert step < 10_000, "the schedule does not come to an end"
    rows = engine.metrics()
    assert (rows.num_waiting, rows.num_running, rows.cache_bytes, rows.failed_steps) == (0, 0, 0, 0)
    assert engine.prefix_account().num_pins == 0
    for arrival, (prompt, params, received) in zip(arrivals, asked, strict=True):
        tokens, reason = model.alone(prompt, params)
        if received.reason is FinishReason.ABORT:
            assert arrival.aborted_after is not None
            assert received.tokens == tokens[: len(received.tokens)]
        else:
            assert (received.tokens, received.reason) == (tokens, reason)
    return rows.preemptions - preempted_before


CROWD = [Arrival(0, (0, 12), (i, 3), 40, None, None, True) for i in range(4)]


@pytest.fixture(scope="module", autouse=True)
def little_headroom() -> Iterator[None]:
    """Sequences are short here, so a small headroom admits more of them and forces preemptions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "HEADROOM", 2)
        yield


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(make(tmp_path_factory.mktemp("counting") / "artifact", end_at=70).folder)


@pytest.fixture(scope="module")
def strict(counting: Model) -> Model:
    return Model(counting.folder, make_buffers=StrictBuffers)


REAL = [("tiny", "fp32", Kernels.AUTO), ("miniature", "fp32", Kernels.AUTO)]
REAL += [("miniature", "int4", Kernels.NATIVE), ("tiny", "int4", Kernels.ONNXRUNTIME)]


@pytest.fixture(scope="module", params=REAL, ids="-".join)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model with random weights and a trained one, and each in int4 on one kind of kernels.

    Activations are float32: rounded to int8, a difference of 1e-6 may become one of 1e-2.
    """
    name, weights, kernels = request.param
    if kernels is Kernels.NATIVE:
        request.getfixturevalue("library")
    checkpoint = TRAINED if name == "miniature" else request.getfixturevalue("tiny_checkpoint")
    out = tmp_path_factory.mktemp("artifact") / weights
    export_checkpoint(checkpoint, out, ExportOptions(weights=weights, activations="float32"))
    return Model(out, top_k=20, kernels=kernels)


@pytest.mark.parametrize("rows_live_in", ["counting", "strict"])
def test_a_crowd_in_a_small_cache_gives_rows_back(rows_live_in: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(rows_live_in)
    assert run(model, CROWD, Limits(rows=4, chunk=5, tokens=150, snapshots=0)) > 0
    assert run(model, CROWD, Limits(rows=4, chunk=5, tokens=150, snapshots=100)) > 0
    assert run(model, CROWD, Limits(rows=4, chunk=5, tokens=10_000, snapshots=0)) == 0


@given(st.lists(ARRIVALS, min_size=1, max_size=10), LIMITS)
@hypothesis_settings(
    max_examples=NUM_SCHEDULES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
def test_no_schedule_changes_what_a_counting_model_says(
    counting: Model, arrivals: list[Arrival], limits: Limits
) -> None:
    run(counting, arrivals, limits)


@given(st.lists(ARRIVALS, min_size=1, max_size=10), LIMITS)
@example(arrivals=CROWD, limits=Limits(4, 5, 150, 100))
@hypothesis_settings(
    max_examples=NUM_STRICT_SCHEDULES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
def test_no_schedule_reads_what_a_strict_row_does_not_hold(
    strict: Model, arrivals: list[Arrival], limits: Limits
) -> None:
    run(strict, arrivals, limits)


@pytest.mark.parametrize("kv", choose_target().target.kv_types)
def test_prompts_behind_one_kept_prefix_are_read_together(
    kv: KvType, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_checkpoint(tiny_checkpoint, tmp_path / "artifact", ExportOptions(weights="fp32", kv=kv))
    model, joined = Model(tmp_path / "artifact"), []
    read = ModelRunner.run

    def watched(runner: ModelRunner, plan: StepPlan) -> list[RowLogits]:
        if plan.num_tokens > 1 and len(plan.sequences) > 1:
            joined.append([sequence.num_computed for sequence in plan.sequences])
        return read(runner, plan)

    monkeypatch.setattr(ModelRunner, "run", watched)
    first = Arrival(0, (0, 20), (0, 3), 4, None, None, True)
    crowd = [replace(first, after=12, own=(1, 9)), *(replace(first, own=(i, 9)) for i in (2, 3))]
    run(model, [first, *crowd], Limits(rows=4, chunk=64, tokens=10_000, snapshots=100))
    assert joined == [[20, 20, 20]]


@given(st.lists(ARRIVALS, min_size=1, max_size=8), LIMITS)
@example(arrivals=CROWD, limits=Limits(4, 5, 150, 0))
@example(arrivals=CROWD, limits=Limits(4, 64, 150, 100))
@hypothesis_settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_no_schedule_changes_what_a_real_checkpoint_says(real: Model, arrivals: list[Arrival], limits: Limits) -> None:
    run(real, arrivals, limits)
