"""The weight stage reads slices, quantises them and appends them to their files, on all processors.

    plan        the source and the place of each weight                    weight_source.py, external_data.py
    verify      the bytes that an interrupted export has written           resume.py, journal.py
    cut         slices and threads for the memory budget                   memory_budget.py, weight_slices.py
    run         read rows -> quantise -> append, hash -> mark              lanes.py; a shard is a lane

Memory is bounded for layers and tensors of any size. The places of bytes depend only on sizes, and their values only on
the weights: not on memory, threads or interruptions.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import torch

from qwonnx.export.checkpoint.row_reader import RowReader
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.errors import TensorFormatError
from qwonnx.export.quantization.importance import Importance
from qwonnx.export.quantization.quantize import NonFiniteWeightError, quantize_blocks
from qwonnx.export.quantization.recipe import FloatType
from qwonnx.export.weight_files.external_data import ExternalDataWriter, Shard
from qwonnx.export.weight_files.journal import Journal, Mark
from qwonnx.export.weight_files.lanes import LaneRunner
from qwonnx.export.weight_files.layout import ExternalTensor, ShardLayout
from qwonnx.export.weight_files.memory_budget import DEFAULT_MEMORY_BYTES, MemoryAccount, cut_for
from qwonnx.export.weight_files.progress import ExportProgress
from qwonnx.export.weight_files.resume import verify_shards
from qwonnx.export.weight_files.weight_item import SUFFIXES, WeightItem
from qwonnx.export.weight_files.weight_slices import ShardSlices, WeightPlan, WeightSlice, keeps_codes

# The journal marks a shard after every weight, and after so many bytes of one: a few seconds of work.
_MARK_BYTES = 256 << 20

_TYPES = {FloatType.FLOAT16: torch.float16, FloatType.BFLOAT16: torch.bfloat16}


@dataclass(frozen=True, slots=True)
class EncodedSlice:
    """A slice of each tensor of an item: floats, or codes, scales and optional zero points."""

    tensors: tuple[torch.Tensor, ...]


def write_weights(
    source: WeightSource,
    items: Sequence[WeightItem],
    writer: ExternalDataWriter,
    *,
    importance: Importance | None = None,
    journal: Journal | None = None,
    num_threads: int | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    on_progress: Callable[[ExportProgress], None] | None = None,
) -> dict[str, ExternalTensor]:
    """Write weights, and close the writer.

    Args:
        source: of the weights.
        items: the weights to write, in this order.
        writer: a new writer.
        importance: of input features, by the weights' names; None: all are equal.
        journal: a started journal. Bytes of its marks are verified and not written again; new marks are added.
        num_threads: that read, quantise and write; None: one for each processor that this process may use.
        memory_bytes: limit of tensors in flight.
        on_progress: called from this thread, repeatedly.

    Returns:
        The places of the bytes: weights of floats by the item's name, others by name + CODES, SCALES and ZERO_POINTS.

    Raises:
        MissingTensorError, TensorFormatError: before anything is written; TensorFormatError also later, if a weight is
            not finite.
        OutputError: there is no room, which is checked first, or writing fails.
    """
    report = on_progress or (lambda progress: None)
    importance = importance or Importance({})
    num_threads = num_threads or _usable_processors()
    plans = [WeightPlan(item.storage, tuple(map(source.part, item.weights))) for item in items]
    layouts = writer.lay_out([plan.size for plan in plans])
    prefixes = None
    if journal is not None:
        journal.begin_layout(_digest(items, layouts, importance))
        prefixes = verify_shards(writer.folder, layouts, journal, num_threads, report)
    with writer:
        shards = writer.begin(layouts, prefixes)
        _write_shards(plans, shards, writer, importance, journal, num_threads, memory_bytes, report)
    return weight_places(items, layouts)


def _digest(items: Sequence[WeightItem], layouts: Sequence[ShardLayout], importance: Importance) -> str:
    """Hash of the inputs that the export's fingerprint does not have: two calibrations may differ."""
    return hashlib.sha256(repr((list(items), list(layouts), importance.sha256)).encode()).hexdigest()


def weight_places(items: Sequence[WeightItem], layouts: Sequence[ShardLayout]) -> dict[str, ExternalTensor]:
    """The places of the tensors of items that are laid out in this order, by the names of `write_weights`."""
    written: dict[str, ExternalTensor] = {}
    for item, place in zip(items, (place for layout in layouts for place in layout.places), strict=True):
        suffixes = SUFFIXES if item.storage.is_quantized else ("",)
        written |= {item.name + suffix: tensor for suffix, tensor in zip(suffixes, place.tensors, strict=False)}
    return written


def _write_shards(
    plans: Sequence[WeightPlan],
    shards: Sequence[Shard],
    writer: ExternalDataWriter,
    importance: Importance,
    journal: Journal | None,
    num_threads: int,
    memory_bytes: int,
    report: Callable[[ExportProgress], None],
) -> None:
    """Write the missing bytes of the shards. All threads have ended when this returns or raises."""
    cut = cut_for(memory_bytes, num_threads, lambda values: max(plan.making_bytes(values) for plan in plans))
    account = MemoryAccount(memory_bytes)
    slices = [ShardSlices(plans, shard.layout, shard.prefix, cut.max_values) for shard in shards]
    total = sum(plan.num_source_bytes for plan in plans)
    done = resumed = sum(part.num_done_source_bytes for part in slices)

    def on_written(num_source_bytes: int) -> None:
        nonlocal done
        done += num_source_bytes
        report(ExportProgress("weights", done, total, resumed, account.peak))

    on_written(0)
    lanes = [
        ShardLane(shard, part, writer, journal, on_written)
        for shard, part in zip(shards, slices, strict=True)
        if not shard.is_complete
    ]
    with (
        _one_torch_thread_each(),
        ThreadPoolExecutor(cut.num_threads, "qwonnx-weights", torch.set_num_threads, (1,)) as pool,
    ):
        runner = LaneRunner(
            partial(encode, importance), pool, account, num_lanes=cut.num_threads, max_slices=cut.max_slices
        )
        try:
            runner.run(lanes)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # leaving the block waits for running jobs
            for lane in lanes:
                lane.mark_last()


class ShardLane:
    """A shard as a lane: it is opened for its first bytes, marked as it grows, and closed after its last."""

    def __init__(
        self,
        shard: Shard,
        slices: ShardSlices,
        writer: ExternalDataWriter,
        journal: Journal | None,
        on_written: Callable[[int], None],
    ) -> None:
        self._shard = shard
        self._to_write = slices
        self._writer = writer
        self._journal = journal
        self._on_written = on_written
        self._index = 0  # of the weight that is being written
        self._marked_bytes = shard.num_bytes
        self._mark: Mark | None = None  # not in the journal yet
        self._is_open = False

    def slices(self) -> Iterator[WeightSlice]:
        return iter(self._to_write)

    def append(self, made: Sequence[EncodedSlice], slices: Sequence[WeightSlice], *, last: bool) -> None:
        if not self._is_open:
            self._shard.open()
            self._is_open = True
        for encoded, part in zip(made, slices, strict=True):
            self._shard.append(part.index, [_bytes_of(tensor) for tensor in encoded.tensors])
        if last:
            self._shard.finish()

    def appended(self, slices: Sequence[WeightSlice]) -> None:
        index, size = slices[-1].index, self._shard.num_bytes
        self._mark = Mark.of(self._shard.layout.number, self._shard.prefix)
        if index != self._index or size - self._marked_bytes >= _MARK_BYTES or self._shard.is_complete:
            try:
                self._note()
            except OSError as error:
                raise self._writer.output_error(error) from error
            self._index, self._marked_bytes = index, size
        self._on_written(sum(part.num_source_bytes for part in slices))

    def mark_last(self) -> None:
        """Mark how far the shard came when the export ends early, if the journal can still be written."""
        with suppress(OSError):
            self._note()

    def _note(self) -> None:
        if self._journal is not None and self._mark is not None:
            self._journal.add_mark(self._mark)
        self._mark = None


@contextmanager
def _one_torch_thread_each() -> Iterator[None]:
    """Restore the caller's number of threads: torch.set_num_threads in a worker also sets it for later threads."""
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def encode(importance: Importance, part: WeightSlice) -> EncodedSlice:
    """Read a slice, and quantise it unless the checkpoint's codes are kept."""
    reader, storage = part.reader, part.storage
    if keeps_codes(reader, storage):
        kept = reader.read_codes(part.start, part.num_rows, storage.block_size)
        if not bool(kept.scales.isfinite().all()):
            raise _not_finite(reader)
        scales = _narrowed(reader, kept.scales, storage.floats)
        return EncodedSlice((kept.codes, scales, kept.zero_points)[: 2 + storage.has_zero_points])
    values = reader.read(part.start, part.num_rows, part.first_column, part.num_columns)
    if not storage.is_quantized:
        # NaN shows in both bounds; isfinite of every value would take twenty times as long.
        if not all(bool(bound.isfinite()) for bound in torch.aminmax(values)):
            raise _not_finite(reader)
        return EncodedSlice((_narrowed(reader, values, storage.floats),))
    codes = torch.empty((part.num_rows, storage.num_code_bytes(part.num_columns)), dtype=torch.uint8)
    scales = torch.empty((part.num_rows, part.num_columns // storage.block_size), dtype=torch.float32)
    try:
        for rows, counts in importance.of_rows(reader.name, reader.num_rows, part.start, part.num_rows):
            if counts is not None:
                counts = counts[part.first_column : part.first_column + part.num_columns]
            quantize_blocks(values[rows], storage.bits, codes[rows], scales[rows], counts)
    except NonFiniteWeightError as error:
        raise _not_finite(reader) from error
    scales = _narrowed(reader, scales, storage.floats)
    if not storage.has_zero_points:
        return EncodedSlice((codes, scales))
    # The sibling has zero points, so this one gets them too: all in the middle of the codes.
    middle, width = 0x88 if storage.bits == 4 else 0x80, storage.num_zero_point_bytes(1, part.num_columns)
    return EncodedSlice((codes, scales, torch.full((part.num_rows, width), middle, dtype=torch.uint8)))


def _narrowed(reader: RowReader, values: torch.Tensor, floats: FloatType) -> torch.Tensor:
    """Finite float32 values in the type of floats.

    Raises:
        TensorFormatError: a value lies outside of the type's range.
    """
    if floats is FloatType.FLOAT32:
        return values
    narrow = values.to(_TYPES[floats])
    if not all(bool(bound.isfinite()) for bound in torch.aminmax(narrow)):
        raise TensorFormatError(
            f"{reader.name} has values beyond {floats.value}'s range: choose other activations for this target"
        )
    return narrow


def _not_finite(reader: RowReader) -> TensorFormatError:
    return TensorFormatError(
        f"{reader.name} has values that are not finite: the training diverged or the file is damaged; use another save"
    )


def _bytes_of(values: torch.Tensor) -> memoryview:
    return values.view(torch.uint8).numpy().data.cast("B")


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
