"""The engine under random requests, aborts and faults, with the accounting checked after every step."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from qwonnx.runtime.cache.buffers import BuffersFactory
from qwonnx.runtime.cache.host_buffers import HostBuffers
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.errors import QueueFullError
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from tests.runtime.counting_model import FAILING_TEXT, NAN_TEXT, CountingModel, make
from tests.runtime.strict_buffers import StrictBuffers

SETTINGS = RuntimeSettings(
    num_threads=1,
    max_num_seqs=3,
    max_num_batched_tokens=3,
    max_model_len=40,
    max_queued_requests=3,
    prefix_cache_bytes=1200,  # a handful of snapshots
)
PROMPTS = st.text("abc é", min_size=1, max_size=9)


@cache
def _model(make_buffers: BuffersFactory) -> CountingModel:
    return make(Path(tempfile.mkdtemp()) / "artifact", end_at=30, make_buffers=make_buffers)


class OnHost(RuleBasedStateMachine):
    """Submits, aborts and steps in any order; teardown closes the engine while requests run."""

    names = Bundle("names")
    make_buffers: BuffersFactory = HostBuffers

    def __init__(self) -> None:
        super().__init__()
        self.model = _model(type(self).make_buffers)
        self.engine = self.model.open(SETTINGS)
        self.outputs: dict[str, list[RequestOutput]] = {}
        self.prompts: dict[str, list[int]] = {}
        self.faulty: set[str] = set()
        self.aborted: set[str] = set()

    @rule(
        target=names,
        text=PROMPTS,
        max_tokens=st.integers(1, 12),
        fault=st.sampled_from(["", "", FAILING_TEXT, NAN_TEXT]),
        snapshot_at=st.lists(st.integers(1, 8), max_size=2),
    )
    def submit(self, text: str, max_tokens: int, fault: str, snapshot_at: list[int]) -> str:
        name = f"r{len(self.outputs)}"
        prompt = self.model.tokenizer.encode(text + fault)
        received: list[RequestOutput] = []
        try:
            self.engine.submit(
                prompt,
                SamplingParams(temperature=0, max_tokens=max_tokens),
                received.append,
                request_id=name,
                snapshot_at=snapshot_at,
            )
        except QueueFullError:
            assert self.engine.num_live_requests == 6
            return "never accepted"
        self.outputs[name], self.prompts[name] = received, prompt
        if fault:
            self.faulty.add(name)
        return name

    @rule(name=names)
    def abort(self, name: str) -> None:
        self.engine.abort(name)
        self.aborted.add(name)

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()
            assert self.engine.check() == []

    @invariant()
    def each_request_ends_once_and_says_what_it_would_say_alone(self) -> None:
        for name, outputs in self.outputs.items():
            assert [output.finish_reason is None for output in outputs[:-1]] == [True] * (len(outputs) - 1)
            tokens = [token for output in outputs for token in output.token_ids]
            assert tokens == self.model.answer(self.prompts[name], len(tokens))
            reason = outputs[-1].finish_reason if outputs else None
            if reason is FinishReason.ERROR:
                assert name in self.faulty
            elif reason is FinishReason.ABORT:
                assert name in self.aborted
            elif reason is not None:
                assert name not in self.faulty

    def teardown(self) -> None:
        self.engine.close()
        for outputs in self.outputs.values():
            assert sum(output.finish_reason is not None for output in outputs) == 1
            assert outputs[-1].finish_reason is not None


class OnStrict(OnHost):
    """The same, with rows that only their buffers can read."""

    make_buffers = StrictBuffers


TestRequestsOnHost = OnHost.TestCase
TestRequestsOnStrict = OnStrict.TestCase
TestRequestsOnHost.settings = TestRequestsOnStrict.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
