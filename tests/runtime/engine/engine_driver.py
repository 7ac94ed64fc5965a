"""Drive the engine in tests: step by step, with the accounting checked each time and outputs as they come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from tests.runtime.counting_model import CountingModel

GREEDY = SamplingParams(temperature=0, max_tokens=12)
SMALL = RuntimeSettings(
    num_threads=1, max_num_seqs=3, max_num_batched_tokens=4, max_model_len=64, max_queued_requests=2
)
TEXT = "the quick é \U0001f600 in a box"


class Received:
    """Outputs of one request, checked as they come."""

    def __init__(self) -> None:
        self.outputs: list[RequestOutput] = []

    def __call__(self, output: RequestOutput) -> None:
        assert self.reason is None, "an output after the last"
        self.outputs.append(output)

    @property
    def reason(self) -> FinishReason | None:
        return self.outputs[-1].finish_reason if self.outputs else None

    @property
    def tokens(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)


@contextmanager
def opened(model: CountingModel, settings: RuntimeSettings = SMALL) -> Iterator[Engine]:
    with model.open(settings) as engine:
        yield engine


def drive(engine: Engine, steps: int = 1000) -> None:
    """Step until all is idle, checking the accounts each time."""
    for _ in range(steps):
        engine.step()
        assert engine.check() == []
        if not engine.num_live_requests:
            return
    raise AssertionError("the engine does not come to an end")


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("waited ten seconds in vain")
