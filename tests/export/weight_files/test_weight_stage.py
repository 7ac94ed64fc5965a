"""The weight stage on the tiny checkpoint: every run writes equal bytes, and every end leaves no thread."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.config import load_config
from qwonnx.export.checkpoint.formats.stored_weights import StoredWeights
from qwonnx.export.checkpoint.weight_part import WeightPart
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.errors import OutputError, TensorFormatError
from qwonnx.export.quantization.importance import Importance
from qwonnx.export.quantization.quantize import quantize_blocks
from qwonnx.export.quantization.recipe import BFLOAT16, Recipe, WeightStorage
from qwonnx.export.quantization.storage_plan import StoragePlan
from qwonnx.export.weight_files import memory_budget, weight_stage
from qwonnx.export.weight_files.external_data import ExternalDataWriter, HashedPrefix, ShardPrefix
from qwonnx.export.weight_files.layout import ExternalTensor
from qwonnx.export.weight_files.memory_budget import DEFAULT_MEMORY_BYTES
from qwonnx.export.weight_files.progress import ExportProgress
from qwonnx.export.weight_files.weight_item import WeightItem
from qwonnx.export.weight_files.weight_slices import ShardSlices, WeightPlan, WeightSlice
from qwonnx.export.weight_files.weight_stage import write_weights
from tests.checkpoints import write_tiny
from tests.checkpoints.quantized_formats import write_gptq
from tests.export.weight_files.peak_memory import peak_bytes

PREFIX = "model.language_model."


def _items(checkpoint: Path, weights: str) -> list[WeightItem]:
    """Every weight of the text model as a separate item, except that gate and up of the shared expert are joined."""
    recipe, opened = Recipe.preset(weights, 32), Checkpoint.open(checkpoint)
    items = []
    for stored in opened.names:
        if stored.startswith(("model.visual.", "mtp.")) or "shared_expert.up_proj" in stored:
            continue
        shape, name = opened.info(stored).shape, stored.removeprefix(PREFIX).replace("A_log", "decay_scale")
        parts = [WeightPart(name, shape)]
        if "shared_expert.gate_proj" in name:
            parts.append(WeightPart(name.replace("gate_proj", "up_proj"), shape))
        items.append(WeightItem(name, tuple(parts), recipe.storage(name, shape)))
    return items


def _source(checkpoint: Path) -> WeightSource:
    return WeightSource(Checkpoint.open(checkpoint), load_config(checkpoint))


def _write(
    checkpoint: Path,
    out: Path,
    weights: str = "int4",
    *,
    num_threads: int | None = 2,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    shard_bytes: int | None = None,
    on_progress: Callable[[ExportProgress], None] | None = None,
) -> tuple[dict[str, ExternalTensor], ExternalDataWriter]:
    out.mkdir()
    writer = ExternalDataWriter(out, shard_bytes)
    written = write_weights(
        _source(checkpoint),
        _items(checkpoint, weights),
        writer,
        num_threads=num_threads,
        memory_bytes=memory_bytes,
        on_progress=on_progress,
    )
    return written, writer


def _workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("qwonnx-weights")]


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "_MANY_VALUES", 1 << 10)


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
@pytest.mark.usefixtures("small_slices")
def test_what_is_written_is_what_the_source_gives(tiny_checkpoint: Path, tmp_path: Path, weights: str) -> None:
    written, _ = _write(tiny_checkpoint, tmp_path / "out", weights)
    source = _source(tiny_checkpoint)

    def stored(name: str, dtype: torch.dtype) -> torch.Tensor:
        tensor = written.pop(name)
        content = (tmp_path / "out" / tensor.file).read_bytes()[tensor.offset : tensor.offset + tensor.num_bytes]
        return torch.frombuffer(bytearray(content), dtype=dtype)

    for item in _items(tiny_checkpoint, weights):
        readers = [source.part(part) for part in item.weights]
        expected = torch.cat([reader.read(0, reader.num_rows) for reader in readers])
        if not item.storage.is_quantized:
            assert torch.equal(stored(item.name, torch.float32).view(expected.shape), expected)
            continue
        scales = stored(f"{item.name}.scales", torch.float32).view(len(expected), -1)
        codes = stored(f"{item.name}.codes", torch.uint8).view(len(expected), -1)
        assert expected.shape[1] // scales.shape[1] == item.storage.block_size
        expected_codes, expected_scales = torch.empty_like(codes), torch.empty_like(scales)
        quantize_blocks(expected, item.storage.bits, expected_codes, expected_scales)
        assert torch.equal(codes, expected_codes)
        assert torch.equal(scales, expected_scales)
    assert written == {}


@pytest.mark.parametrize("weights", ["int4", "fp32"])
def test_bytes_do_not_depend_on_threads_memory_or_slices(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    shard_bytes = 100_000
    every_fifth = _items(tiny_checkpoint, weights)[2::5]  # a layer's experts, projections, norms
    monkeypatch.setattr(f"{__name__}._items", lambda *arguments: every_fifth)
    whole, writer = _write(tiny_checkpoint, tmp_path / "whole", weights, num_threads=1, shard_bytes=shard_bytes)
    assert len(writer.files) > 5
    many = 1 << 20
    runs = [(many, 1, 8_000), (many, 5, 50_000), (many, 2, 3_000_000), (1 << 8, 3, 10**9), (5 << 8, 1, 10**9)]
    for slice_values, num_threads, memory_bytes in runs:
        monkeypatch.setattr(memory_budget, "_MANY_VALUES", slice_values)
        seen: list[ExportProgress] = []
        written, other = _write(
            tiny_checkpoint,
            tmp_path / f"{slice_values}-{num_threads}-{memory_bytes}",
            weights,
            num_threads=num_threads,
            memory_bytes=memory_bytes,
            shard_bytes=shard_bytes,
            on_progress=seen.append,
        )
        assert written == whole
        assert other.files == writer.files
        peaks = [progress.peak_bytes for progress in seen]
        assert peaks == sorted(peaks)
        assert 0 < peaks[-1] <= memory_bytes


@pytest.mark.parametrize("weights", ["int8", "int4", "fp32"])
def test_a_slice_takes_no_more_memory_than_the_account_says(tiny_checkpoint: Path, weights: str) -> None:
    source = _source(tiny_checkpoint)
    for name in ("layers.0.mlp.experts.gate_up_proj", "layers.3.self_attn.q_proj.weight"):
        shape = _shape(tiny_checkpoint, name)
        storage = Recipe.preset(weights, 16).storage(name, shape)
        reader = source.rows(name, shape)
        part = WeightSlice(0, storage, reader, 0, reader.num_rows, 0, reader.num_columns)
        taken = peak_bytes(partial(weight_stage.encode, Importance({}), part))
        # Reading frees a row's bytes as soon as they are values, so it may stay below the account, but not far.
        assert 0.6 * part.making_bytes < taken <= part.making_bytes
        encoded = weight_stage.encode(Importance({}), part)
        assert sum(tensor.nbytes for tensor in encoded.tensors) == part.waiting_bytes


def test_bfloat16_is_the_upper_half_of_each_value(tiny_checkpoint: Path) -> None:
    source, name = _source(tiny_checkpoint), "layers.0.mlp.gate.weight"
    reader = source.rows(name, _shape(tiny_checkpoint, name))
    part = WeightSlice(0, BFLOAT16, reader, 0, reader.num_rows, 0, reader.num_columns)
    (made,) = weight_stage.encode(Importance({}), part).tensors
    assert made.nbytes == part.waiting_bytes == 2 * reader.num_values
    assert part.making_bytes >= reader.read_bytes(reader.num_values) + 6 * reader.num_values
    assert torch.equal(made.float(), reader.read(0, reader.num_rows))


def _shape(checkpoint: Path, name: str) -> tuple[int, ...]:
    return Checkpoint.open(checkpoint).info(PREFIX + name).shape


@pytest.mark.parametrize("name", ["layers.0.mlp.experts.gate_up_proj", "layers.0.mlp.shared_expert.down_proj.weight"])
@pytest.mark.parametrize("max_values", [256, 512, 768])
def test_rows_wider_than_a_slice_are_cut_into_columns_from_wherever_the_last_export_ended(
    tmp_path: Path, name: str, max_values: int
) -> None:
    shape = (2, 6, 1280) if "experts." in name else (3, 1280)
    save_file(
        {
            PREFIX + name: torch.randn(shape).bfloat16(),
            PREFIX + "embed_tokens.weight": torch.zeros(1, 1),
        },
        tmp_path / "model.safetensors",
    )
    config = load_config(write_tiny(tmp_path / "tiny"))
    reader = WeightSource(Checkpoint.open(tmp_path), config).rows(name, shape)
    whole = reader.read(0, reader.num_rows).flatten()
    storage = WeightStorage(4, 256)
    plan = WeightPlan(storage, (reader,))
    (layout,) = ExternalDataWriter(tmp_path).lay_out([plan.size])
    everything = list(ShardSlices([plan], layout, ShardPrefix.empty(layout), max_values))
    assert sum(part.num_source_bytes for part in everything) == reader.num_source_bytes
    for begun in range(len(everything)):
        done = sum(part.num_values for part in everything[:begun])
        sizes = storage.num_code_bytes(done), storage.num_scale_bytes(done)
        files = (dataclasses.replace(HashedPrefix.empty(), size=size) for size in sizes)
        parts = ShardSlices([plan], layout, ShardPrefix(tuple(files)), 512)
        assert parts.num_done_source_bytes == 2 * done
        read = [reader.read(part.start, part.num_rows, part.first_column, part.num_columns).flatten() for part in parts]
        assert torch.equal(torch.cat([whole[:done], *read]), whole)
        assert all(part.num_values <= 512 for part in parts)


@pytest.mark.parametrize("symmetric", [True, False])
def test_bytes_of_kept_codes_do_not_depend_on_threads_or_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symmetric: bool
) -> None:
    dense = write_tiny(tmp_path / "float", architecture="Qwen3_5ForConditionalGeneration", vision=False)
    folder = write_gptq(dense, tmp_path / "gptq", tmp_path / "exact", group_size=32, symmetric=symmetric)
    config = load_config(folder)
    stored = StoredWeights(Checkpoint.open(folder), config.quantization)

    def write(out: Path, slice_values: int, num_threads: int) -> tuple[dict[str, ExternalTensor], ExternalDataWriter]:
        monkeypatch.setattr(memory_budget, "_MANY_VALUES", slice_values)
        out.mkdir()
        source, writer = _source(folder), ExternalDataWriter(out)
        plan, items = StoragePlan(Recipe.preset("int4"), source), []
        for name in stored.names:
            ours, shape = name.removeprefix(PREFIX).replace("A_log", "decay_scale"), stored.shape(name)
            items.append(WeightItem(ours, (WeightPart(ours, shape),), plan.storage(ours, shape)))
        return write_weights(source, items, writer, num_threads=num_threads), writer

    whole, writer = write(tmp_path / "whole", 1 << 20, 1)
    assert ("layers.0.mlp.up_proj.weight.zero_points" in whole) is not symmetric
    for slice_values, num_threads in ((1 << 11, 1), (3 << 12, 3)):
        written, other = write(tmp_path / f"{slice_values}", slice_values, num_threads)
        assert written == whole
        assert other.files == writer.files


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_slice_of_kept_codes_takes_no_more_memory_than_the_account_says(tmp_path: Path, symmetric: bool) -> None:
    dense = write_tiny(tmp_path / "float", architecture="Qwen3_5ForConditionalGeneration", vision=False)
    folder = write_gptq(dense, tmp_path / "gptq", tmp_path / "exact", group_size=32, symmetric=symmetric)
    source, name = _source(folder), "layers.0.mlp.up_proj.weight"
    shape = StoredWeights(Checkpoint.open(folder), load_config(folder).quantization).shape(PREFIX + name)
    storage, reader = (
        StoragePlan(Recipe.preset("int4"), source).storage(name, shape),
        source.rows(name, shape),
    )
    part = WeightSlice(0, storage, reader, 0, reader.num_rows, 0, reader.num_columns)
    assert 0 < peak_bytes(partial(weight_stage.encode, Importance({}), part)) <= part.making_bytes
    encoded = weight_stage.encode(Importance({}), part)
    assert sum(tensor.nbytes for tensor in encoded.tensors) == part.waiting_bytes


@pytest.mark.usefixtures("small_slices")
def test_progress_counts_the_bytes_of_what_is_exported_and_ends_at_the_total(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    seen: list[ExportProgress] = []
    _write(tiny_checkpoint, tmp_path / "out", on_progress=seen.append)
    opened = Checkpoint.open(tiny_checkpoint)
    total = sum(opened.info(name).num_bytes for name in opened.names if not name.startswith("model.visual."))
    assert {(progress.stage, progress.total_bytes, progress.resumed_bytes) for progress in seen} == {
        ("weights", total, 0)
    }
    counts = [progress.done_bytes for progress in seen]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, total)
    assert len(seen) > 500


@pytest.mark.usefixtures("small_slices")
def test_an_interruption_ends_the_threads_and_closes_the_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    running: list[int] = []

    def interrupt(progress: ExportProgress) -> None:
        running.append(len(_workers()))
        if progress.done_bytes > progress.total_bytes // 3:
            raise KeyboardInterrupt

    torch_threads = torch.get_num_threads()
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(KeyboardInterrupt) as caught:
        _write(tiny_checkpoint, tmp_path / "out", on_progress=interrupt)
    # The traceback keeps the frames alive: nothing here may wait for the collector.
    assert caught.value.__traceback__ is not None
    assert max(running) > 0
    assert _workers() == []
    assert torch.get_num_threads() == torch_threads
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


@pytest.mark.usefixtures("small_slices")
def test_few_slices_are_under_way_however_slow_the_writer_is(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, most_ahead, written = 0, 0, 0
    encode, append = weight_stage.encode, weight_stage.ShardLane.append

    def counting(importance: Importance, part: WeightSlice) -> weight_stage.EncodedSlice:
        nonlocal encoded
        encoded += 1
        return encode(importance, part)

    def slow(
        lane: weight_stage.ShardLane,
        made: Sequence[weight_stage.EncodedSlice],
        slices: Sequence[WeightSlice],
        *,
        last: bool,
    ) -> None:
        nonlocal written, most_ahead
        most_ahead = max(most_ahead, encoded - written)
        if written < 50:
            time.sleep(0.002)
        append(lane, made, slices, last=last)
        written += len(slices)

    monkeypatch.setattr(weight_stage, "encode", counting)
    monkeypatch.setattr(weight_stage.ShardLane, "append", slow)
    _write(tiny_checkpoint, tmp_path / "out", num_threads=2)
    assert 0 < most_ahead <= 2 * memory_budget.SLICES_PER_THREAD


def test_a_weight_that_is_not_finite_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    names = ("layers.1.mlp.experts.down_proj", "layers.3.self_attn.q_norm.weight")
    for index, name in enumerate(names):
        checkpoint = tmp_path / f"checkpoint{index}"
        shutil.copytree(tiny_checkpoint, checkpoint)
        tensors = load_file(checkpoint / "model.safetensors")
        tensors[PREFIX + name].view(-1)[-1] = float("nan")
        save_file(tensors, checkpoint / "model.safetensors")
        with pytest.raises(TensorFormatError, match=f"^{name} has values that are not finite: the training diverged"):
            _write(checkpoint, tmp_path / f"out{index}")
        assert _workers() == []


def test_a_disk_without_room_is_refused_before_a_byte_is_written(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(OutputError, match=r"1\.00 MB free and the weights need 1\.\d\d MB"):
        _write(tiny_checkpoint, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
