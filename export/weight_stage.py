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

from qwonnx.export.errors import TensorFormatError
from qwonnx.export.external_data import ExternalDataWriter, ExternalTensor, TensorWriter
from qwonnx.export.quantize import NonFiniteWeightError, quantize_blocks
from qwonnx.export.recipe import WeightStorage
from qwonnx.export.weights import RowReader, WeightSource

# Values a worker takes on at a time. A slice passes through some 25 calls of torch, which cost 0.15 ms whatever its
# size: slices that fit a core's second-level cache, an eighth of this, take twice as long a value.
_SLICE_VALUES = 1 << 20
# What follows an item's name in those of its tensors, where it is quantised.
CODES, SCALES, ZERO_POINTS = ".codes", ".scales", ".zero_points"
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

    @property
    def num_bytes(self) -> dict[str, int]:
        """Bytes of each tensor that the item is stored in, by what follows its name, in the order of _Encoded."""
        storage, num_columns = self.item.storage, self.readers[0].num_columns
        num_rows = sum(reader.num_rows for reader in self.readers)
        codes = storage.num_code_bytes(num_rows * num_columns)
        if not storage.is_quantized:
            return {"": codes}
        tensors = {CODES: codes, SCALES: storage.num_scale_bytes(num_rows * num_columns)}
        if storage.has_zero_points:
            tensors[ZERO_POINTS] = storage.num_zero_point_bytes(num_rows, num_columns)
        return tensors


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
    """A slice of each tensor that an item is stored in: float32 values, or codes, scales and perhaps zero points."""

    tensors: tuple[torch.Tensor, ...]


def write_weights(
    source: WeightSource,
    items: Sequence[WeightItem],
    writer: ExternalDataWriter,
    *,
    num_threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, ExternalTensor]:
    """Write all weights, and close the writer.

    Args:
        source: where they come from. After this every tensor of the checkpoint was used, or is a skipped part.
        items: what to write, in this order.
        writer: a new writer.
        num_threads: that read and quantise; None: as many as this process may use processors.
        on_progress: called from this thread after every slice with the bytes of the checkpoint that are done, and that
            there are to do.

    Returns:
        Where the bytes lie: float32 weights by the item's name, others by name + CODES, SCALES and ZERO_POINTS.

    Raises:
        MissingTensorError, TensorFormatError, UnusedTensorError: before anything is written; TensorFormatError also
            when a weight turns out not to be finite.
        OutputError: there is no room, which is checked first, or writing fails.
    """
    plans = [_Plan(item, tuple(source.rows(name, shape) for name, shape in item.weights)) for item in items]
    source.check_all_used()
    done, total = 0, sum(reader.num_source_bytes for plan in plans for reader in plan.readers)
    written: dict[str, ExternalTensor] = {}
    with writer:
        writer.require_space(sum(sum(plan.num_bytes.values()) for plan in plans))
        current: _Plan | None = None
        with closing(_encode_in_order(_slices(plans), num_threads or _usable_processors())) as encoded_slices:
            for part, encoded in encoded_slices:
                if part.plan is not current:
                    current = part.plan
                    streams = _begin(current, writer, written)
                for stream, tensor in zip(streams, encoded.tensors, strict=True):
                    stream.write(_bytes_of(tensor))
                done += part.num_source_bytes
                if on_progress is not None:
                    on_progress(done, total)
    return written


def _begin(plan: _Plan, writer: ExternalDataWriter, written: dict[str, ExternalTensor]) -> list[TensorWriter]:
    streams = []
    for suffix, num_bytes in plan.num_bytes.items():
        stream = writer.begin(num_bytes)
        written[plan.item.name + suffix] = stream.tensor
        streams.append(stream)
    return streams


def _slices(plans: Sequence[_Plan]) -> Iterator[_Slice]:
    for plan in plans:
        for reader in plan.readers:
            num_rows = reader.rows_at_once(_SLICE_VALUES)
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
    """Read a slice, and quantise it unless the checkpoint has."""
    reader, storage = part.reader, part.plan.item.storage
    if storage.is_quantized and reader.codes is not None:
        rows = reader.read_codes(part.start, part.num_rows, storage.block_size)
        if not bool(rows.scales.isfinite().all()):
            raise _not_finite(reader)
        return _Encoded((rows.codes, rows.scales, rows.zero_points)[: len(part.plan.num_bytes)])
    values = reader.read(part.start, part.num_rows)
    if not storage.is_quantized:
        # NaN passes through both bounds; isfinite of every value would take twenty times as long.
        if not all(bool(bound.isfinite()) for bound in torch.aminmax(values)):
            raise _not_finite(reader)
        return _Encoded((values,))
    codes = torch.empty((part.num_rows, storage.num_code_bytes(reader.num_columns)), dtype=torch.uint8)
    scales = torch.empty((part.num_rows, reader.num_columns // storage.block_size), dtype=torch.float32)
    try:
        quantize_blocks(values, storage.bits, codes, scales)
    except NonFiniteWeightError as error:
        raise _not_finite(reader) from error
    if not storage.has_zero_points:
        return _Encoded((codes, scales))
    # Beside a sibling that has zero points of its own: all in the middle of the codes.
    middle, width = 0x88 if storage.bits == 4 else 0x80, storage.num_zero_point_bytes(1, reader.num_columns)
    return _Encoded((codes, scales, torch.full((part.num_rows, width), middle, dtype=torch.uint8)))


def _not_finite(reader: RowReader) -> TensorFormatError:
    return TensorFormatError(f"{reader.name} has values that are not finite: download the checkpoint again")


def _bytes_of(values: torch.Tensor) -> memoryview:
    return values.numpy().data.cast("B")


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
