"""The weight stage: read slices, quantise them on all processors, write them in order.

    this thread         plan -> check space -> hand slices out -> take results in order -> write, hash
    worker threads      read rows -> quantise, one slice after the other

Memory depends on the number of threads and not on the model: a slice has a fixed size, and only a few slices per thread
are under way. Slices are cut the same way whatever the number of threads, so the bytes are too.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch

from qwonnx.export.calibration import Importance
from qwonnx.export.errors import TensorFormatError
from qwonnx.export.external_data import ExternalDataWriter, ExternalTensor, TensorWriter
from qwonnx.export.quantize import NonFiniteWeightError, quantize_blocks
from qwonnx.export.recipe import WeightStorage
from qwonnx.export.weights import RowReader, WeightSource

# Values a worker takes on at a time: what goes through a queue, a read and a write costs the same whatever its size.
# Quantising walks through a slice in smaller steps, which fit the cache.
_SLICE_VALUES = 1 << 20
# Slices under way for each thread: one in the making, one waiting to be written.
_SLICES_PER_THREAD = 2


@dataclass(frozen=True, slots=True)
class WeightItem:
    """One stored weight: (name, shape) of the logical weights that it joins along their rows, and how it is stored."""

    name: str
    weights: tuple[tuple[str, tuple[int, ...]], ...]
    storage: WeightStorage


@dataclass(frozen=True, slots=True)
class _Plan:
    """A weight item whose parts were found in the checkpoint."""

    item: WeightItem
    readers: tuple[RowReader, ...]
    importance: Importance

    @property
    def num_code_bytes(self) -> int:
        return self.item.storage.num_code_bytes(self._num_parameters)

    @property
    def num_scale_bytes(self) -> int:
        return self.item.storage.num_scale_bytes(self._num_parameters)

    @property
    def _num_parameters(self) -> int:
        return sum(reader.num_rows * reader.num_columns for reader in self.readers)


@dataclass(frozen=True, slots=True)
class _Slice:
    """Some rows of one part of an item."""

    plan: _Plan
    reader: RowReader
    start: int
    num_rows: int

    @property
    def num_source_bytes(self) -> int:
        """Its share of the part's bytes; the shares of all slices add up exactly."""
        reader = self.reader
        before, after = (
            reader.num_source_bytes * row // reader.num_rows for row in (self.start, self.start + self.num_rows)
        )
        return after - before


@dataclass(frozen=True, slots=True)
class _Encoded:
    """The bytes of a slice: codes and scales, or float32 values and no scales."""

    codes: torch.Tensor
    scales: torch.Tensor | None


def write_weights(
    source: WeightSource,
    items: Sequence[WeightItem],
    writer: ExternalDataWriter,
    *,
    importance: Importance | None = None,
    num_threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, ExternalTensor]:
    """Write all weights, and close the writer.

    Args:
        source: where they come from. After this every tensor of the checkpoint was used, or is a skipped part.
        items: what to write, in this order.
        writer: a new writer.
        importance: of input features, by the weights' names; None: all count alike.
        num_threads: that read and quantise; None: as many as this process may use processors.
        on_progress: called from this thread after every slice with the bytes of the checkpoint that are done, and that
            there are to do.

    Returns:
        Where the bytes lie: float32 weights by the item's name, others as name + ".codes" and name + ".scales".

    Raises:
        MissingTensorError, TensorFormatError, UnusedTensorError: before anything is written; TensorFormatError also
            when a weight turns out not to be finite.
        OutputError: there is no room, which is checked first, or writing fails.
    """
    known = importance or Importance({})
    plans = [_Plan(item, tuple(source.rows(name, shape) for name, shape in item.weights), known) for item in items]
    source.check_all_used()
    done, total = 0, sum(reader.num_source_bytes for plan in plans for reader in plan.readers)
    written: dict[str, ExternalTensor] = {}
    with writer:
        writer.require_space(sum(plan.num_code_bytes + plan.num_scale_bytes for plan in plans))
        current: _Plan | None = None
        with closing(_encode_in_order(_slices(plans), num_threads or _usable_processors())) as encoded_slices:
            for part, encoded in encoded_slices:
                if part.plan is not current:
                    current = part.plan
                    codes, scales = _begin(current, writer, written)
                codes.write(_bytes_of(encoded.codes))
                if encoded.scales is not None:
                    assert scales is not None
                    scales.write(_bytes_of(encoded.scales))
                done += part.num_source_bytes
                if on_progress is not None:
                    on_progress(done, total)
    return written


def _begin(
    plan: _Plan, writer: ExternalDataWriter, written: dict[str, ExternalTensor]
) -> tuple[TensorWriter, TensorWriter | None]:
    name = plan.item.name
    codes = writer.begin(plan.num_code_bytes)
    if not plan.item.storage.is_quantized:
        written[name] = codes.tensor
        return codes, None
    scales = writer.begin(plan.num_scale_bytes)
    written[name + ".codes"], written[name + ".scales"] = codes.tensor, scales.tensor
    return codes, scales


def _slices(plans: Sequence[_Plan]) -> Iterator[_Slice]:
    for plan in plans:
        for reader in plan.readers:
            num_rows = max(1, _SLICE_VALUES // reader.num_columns)
            for start in range(0, reader.num_rows, num_rows):
                yield _Slice(plan, reader, start, min(num_rows, reader.num_rows - start))


def _encode_in_order(slices: Iterator[_Slice], num_threads: int) -> Generator[tuple[_Slice, _Encoded], None, None]:
    """Every slice with its bytes, in order. However the consumer leaves, the threads have ended when it has."""
    under_way: deque[tuple[_Slice, Future[_Encoded]]] = deque()
    with (
        _one_torch_thread_each(),
        ThreadPoolExecutor(num_threads, "qwonnx-weights", initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        try:
            for part in slices:
                under_way.append((part, pool.submit(_encode, part)))
                if len(under_way) > num_threads * _SLICES_PER_THREAD:
                    first, future = under_way.popleft()
                    yield first, future.result()
            while under_way:
                first, future = under_way.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # leaving the block waits for slices in the making


@contextmanager
def _one_torch_thread_each() -> Iterator[None]:
    """torch.set_num_threads in a worker also decides for threads to come; the caller gets its own number back."""
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _encode(part: _Slice) -> _Encoded:
    """Read and quantise a slice."""
    reader, storage = part.reader, part.plan.item.storage
    values = reader.read(part.start, part.num_rows)
    if not storage.is_quantized:
        # NaN passes through both bounds; isfinite of every value would take twenty times as long.
        if not all(bool(bound.isfinite()) for bound in torch.aminmax(values)):
            raise _not_finite(reader)
        return _Encoded(values, None)
    codes = torch.empty((part.num_rows, storage.num_code_bytes(reader.num_columns)), dtype=torch.uint8)
    scales = torch.empty((part.num_rows, reader.num_columns // storage.block_size), dtype=torch.float32)
    try:
        for rows, weights in part.plan.importance.of_rows(reader.name, reader.num_rows, part.start, part.num_rows):
            quantize_blocks(values[rows], storage.bits, codes[rows], scales[rows], weights)
    except NonFiniteWeightError as error:
        raise _not_finite(reader) from error
    return _Encoded(codes, scales)


def _not_finite(reader: RowReader) -> TensorFormatError:
    return TensorFormatError(f"{reader.name} has values that are not finite: download the checkpoint again")


def _bytes_of(values: torch.Tensor) -> memoryview:
    return values.numpy().data.cast("B")


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
