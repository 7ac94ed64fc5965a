"""The weight stage on the tiny checkpoint: equal bytes however it runs, and no thread left however it ends."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwonnx.export import weight_stage
from qwonnx.export.checkpoint import Checkpoint
from qwonnx.export.config import load_config
from qwonnx.export.errors import OutputError, TensorFormatError, UnusedTensorError
from qwonnx.export.external_data import ExternalDataWriter, ExternalTensor
from qwonnx.export.quantize import dequantize_blocks
from qwonnx.export.recipe import Recipe
from qwonnx.export.storage_plan import StoragePlan
from qwonnx.export.stored_weights import StoredWeights
from qwonnx.export.weight_stage import WeightItem, write_weights
from qwonnx.export.weights import WeightSource
from tests.checkpoints import write_tiny
from tests.checkpoints.quantized_formats import write_gptq

PREFIX = "model.language_model."


def _items(checkpoint: Path, weights: str) -> list[WeightItem]:
    """Every weight of the text model as an item of its own, but gate and up of the shared expert joined."""
    recipe, opened = Recipe.preset(weights, 32), Checkpoint.open(checkpoint)
    items = []
    for stored in opened.names:
        if stored.startswith(("model.visual.", "mtp.")) or "shared_expert.up_proj" in stored:
            continue
        shape, name = opened.info(stored).shape, stored.removeprefix(PREFIX).replace("A_log", "decay_scale")
        parts = [(name, shape)]
        if "shared_expert.gate_proj" in name:
            parts.append((name.replace("gate_proj", "up_proj"), shape))
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
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, ExternalTensor], ExternalDataWriter]:
    out.mkdir()
    writer = ExternalDataWriter(out)
    items = _items(checkpoint, weights)
    written = write_weights(_source(checkpoint), items, writer, num_threads=num_threads, on_progress=on_progress)
    return written, writer


def _workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("qwonnx-weights")]


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_stage, "_SLICE_VALUES", 1 << 10)


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
        readers = [source.rows(name, shape) for name, shape in item.weights]
        expected = torch.cat([reader.read(0, reader.num_rows) for reader in readers])
        if not item.storage.is_quantized:
            assert torch.equal(stored(item.name, torch.float32).view(expected.shape), expected)
            continue
        scales = stored(f"{item.name}.scales", torch.float32).view(len(expected), -1)
        codes = stored(f"{item.name}.codes", torch.uint8).view(len(expected), -1)
        assert expected.shape[1] // scales.shape[1] == item.storage.block_size
        error = (dequantize_blocks(codes, scales, item.storage.bits) - expected).abs()
        step = scales.abs().repeat_interleave(item.storage.block_size, 1)
        assert (error <= step * (1.0 if item.storage.bits == 4 else 0.5) * 1.00001).all()
    assert written == {}


def test_bytes_do_not_depend_on_threads_or_slices(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, writer = _write(tiny_checkpoint, tmp_path / "whole", num_threads=1)
    for slice_values in (1 << 10, 3 << 12):
        monkeypatch.setattr(weight_stage, "_SLICE_VALUES", slice_values)
        for num_threads in (1, 2, 5):
            out = tmp_path / f"{slice_values}-{num_threads}"
            written, other = _write(tiny_checkpoint, out, num_threads=num_threads)
            assert written == whole
            assert other.files == writer.files


@pytest.mark.parametrize("symmetric", [True, False])
def test_bytes_of_kept_codes_do_not_depend_on_threads_or_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symmetric: bool
) -> None:
    dense = write_tiny(tmp_path / "float", architecture="Qwen3_5ForConditionalGeneration", vision=False)
    folder = write_gptq(dense, tmp_path / "gptq", tmp_path / "exact", group_size=32, symmetric=symmetric)
    config = load_config(folder)
    stored = StoredWeights(Checkpoint.open(folder), config.quantization)

    def write(out: Path, slice_values: int, num_threads: int) -> tuple[dict[str, ExternalTensor], ExternalDataWriter]:
        monkeypatch.setattr(weight_stage, "_SLICE_VALUES", slice_values)
        out.mkdir()
        source, writer = _source(folder), ExternalDataWriter(out)
        plan, items = StoragePlan(Recipe.preset("int4"), source), []
        for name in stored.names:
            ours, shape = name.removeprefix(PREFIX).replace("A_log", "decay_scale"), stored.shape(name)
            items.append(WeightItem(ours, ((ours, shape),), plan.storage(ours, shape)))
        return write_weights(source, items, writer, num_threads=num_threads), writer

    whole, writer = write(tmp_path / "whole", 1 << 20, 1)
    assert ("layers.0.mlp.up_proj.weight.zero_points" in whole) is not symmetric
    for slice_values, num_threads in ((1 << 11, 1), (3 << 12, 3)):
        written, other = write(tmp_path / f"{slice_values}", slice_values, num_threads)
        assert written == whole
        assert other.files == writer.files


@pytest.mark.usefixtures("small_slices")
def test_progress_counts_the_bytes_of_what_is_exported_and_ends_at_the_total(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    _write(tiny_checkpoint, tmp_path / "out", on_progress=lambda done, total: seen.append((done, total)))
    opened = Checkpoint.open(tiny_checkpoint)
    total = sum(opened.info(name).num_bytes for name in opened.names if not name.startswith("model.visual."))
    assert {pair[1] for pair in seen} == {total}
    counts = [pair[0] for pair in seen]
    assert counts == sorted(counts)
    assert counts[-1] == total
    assert len(seen) > 1000


@pytest.mark.usefixtures("small_slices")
def test_an_interruption_ends_the_threads_and_closes_the_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    running: list[int] = []

    def interrupt(done: int, total: int) -> None:
        running.append(len(_workers()))
        if done > total // 3:
            raise KeyboardInterrupt

    torch_threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt) as caught:
        _write(tiny_checkpoint, tmp_path / "out", on_progress=interrupt)
    # The traceback keeps the frames alive: nothing here may wait for the collector.
    assert caught.value.__traceback__ is not None
    assert max(running) > 0
    assert _workers() == []
    assert torch.get_num_threads() == torch_threads


@pytest.mark.usefixtures("small_slices")
def test_few_slices_are_under_way_however_slow_the_writer_is(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, most_ahead, written = 0, 0, 0
    encode = weight_stage._encode

    def counting(part: weight_stage._Slice) -> weight_stage._Encoded:
        nonlocal encoded
        encoded += 1
        return encode(part)

    def slow(done: int, total: int) -> None:
        nonlocal written, most_ahead
        written += 1
        if written < 50:
            time.sleep(0.002)
        most_ahead = max(most_ahead, encoded - written)

    monkeypatch.setattr(weight_stage, "_encode", counting)
    _write(tiny_checkpoint, tmp_path / "out", num_threads=2, on_progress=slow)
    assert 0 < most_ahead <= 2 * weight_stage._SLICES_PER_THREAD + 1


def test_a_weight_that_is_not_finite_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    names = ("layers.1.mlp.experts.down_proj", "layers.3.self_attn.q_norm.weight")
    for index, name in enumerate(names):
        checkpoint = tmp_path / f"checkpoint{index}"
        shutil.copytree(tiny_checkpoint, checkpoint)
        tensors = load_file(checkpoint / "model.safetensors")
        tensors[PREFIX + name].view(-1)[-1] = float("nan")
        save_file(tensors, checkpoint / "model.safetensors")
        with pytest.raises(TensorFormatError, match=f"^{name} has values that are not finite: download"):
            _write(checkpoint, tmp_path / f"out{index}")
        assert _workers() == []


def test_unused_tensors_are_refused_before_a_byte_is_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    items = [item for item in _items(tiny_checkpoint, "int4") if item.name != "layers.2.mlp.gate.weight"]
    with pytest.raises(UnusedTensorError, match=r"layers\.2\.mlp\.gate\.weight"):
        write_weights(_source(tiny_checkpoint), items, ExternalDataWriter(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused_before_a_byte_is_written(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(OutputError, match=r"1\.0 MB free and the weights need 1\.\d MB"):
        _write(tiny_checkpoint, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
