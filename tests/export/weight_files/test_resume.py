"""Resuming the weight stage: only bytes with right hashes are kept, and the final files are the same."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.config import load_config
from qwonnx.export.checkpoint.weight_part import WeightPart
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.errors import OutputError
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.export.weight_files.external_data import ExternalDataWriter
from qwonnx.export.weight_files.journal import JOURNAL_NAME, Journal, Mark, Noted
from qwonnx.export.weight_files.progress import ExportProgress
from qwonnx.export.weight_files.weight_item import WeightItem
from qwonnx.export.weight_files.weight_stage import write_weights
from qwonnx.runtime.artifact.manifest import FileEntry

pytestmark = pytest.mark.fast

PREFIX = "model.language_model."
LAYER = "layers.0."
SHARD_BYTES = 60_000


class _Stage:
    """The weights of one layer of the tiny checkpoint, written into a folder with a journal, as often as it takes."""

    def __init__(self, checkpoint: Path, folder: Path, weights: str = "int4") -> None:
        self.folder = folder
        self._source = WeightSource(Checkpoint.open(checkpoint), load_config(checkpoint))
        recipe, opened = Recipe.preset(weights, 32), Checkpoint.open(checkpoint)
        names = [name for name in opened.names if name.startswith(PREFIX + LAYER)]
        self._items = []
        for stored in names:
            name, shape = stored.removeprefix(PREFIX).replace("A_log", "decay_scale"), opened.info(stored).shape
            self._items.append(WeightItem(name, (WeightPart(name, shape),), recipe.storage(name, shape)))
        folder.mkdir()

    def run(
        self, on_progress: Callable[[ExportProgress], None] | None = None, num_threads: int = 2, memory: int = 200_000
    ) -> tuple[FileEntry, ...]:
        file = os.open(self.folder / JOURNAL_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            journal = Journal(file)
            if journal.fingerprint is None:
                journal.start({})
            writer = ExternalDataWriter(self.folder, SHARD_BYTES)
            write_weights(
                self._source,
                self._items,
                writer,
                journal=journal,
                num_threads=num_threads,
                memory_bytes=memory,
                on_progress=on_progress,
            )
            return writer.files
        finally:
            os.close(file)

    def interrupt(self, fraction: float) -> None:
        """Run until this share of the weights is read."""

        def stop(progress: ExportProgress) -> None:
            if progress.stage == "weights" and progress.done_bytes >= fraction * progress.total_bytes:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.run(stop)

    def resume(self) -> tuple[tuple[FileEntry, ...], float]:
        """The final files, and the share of the weights that was not read again."""
        seen: list[ExportProgress] = []
        files = self.run(seen.append)
        weights = [progress for progress in seen if progress.stage == "weights"]
        assert {progress.resumed_bytes for progress in weights} == {weights[0].done_bytes}
        assert weights[-1].done_bytes == weights[-1].total_bytes
        return files, weights[0].done_bytes / weights[0].total_bytes


@pytest.fixture
def stage(tiny_checkpoint: Path, tmp_path: Path) -> _Stage:
    return _Stage(tiny_checkpoint, tmp_path / "resumed")


@pytest.fixture
def whole(tiny_checkpoint: Path, tmp_path: Path) -> _Stage:
    """The same, never interrupted."""
    return _Stage(tiny_checkpoint, tmp_path / "whole")


def _assert_same(stage: _Stage, files: tuple[FileEntry, ...], whole: _Stage) -> None:
    assert files == whole.run()
    for entry in files:
        assert (stage.folder / entry.path).read_bytes() == (whole.folder / entry.path).read_bytes()
    assert sorted(path.name for path in stage.folder.iterdir()) == sorted(path.name for path in whole.folder.iterdir())


def test_an_interrupted_stage_goes_on_from_wherever_it_was(stage: _Stage, whole: _Stage) -> None:
    for fraction in (0.0, 0.1, 0.35, 0.6, 0.9):
        stage.interrupt(fraction)
    files, kept = stage.resume()
    assert len(files) > 5
    assert kept >= 0.8
    _assert_same(stage, files, whole)
    assert stage.resume() == (files, 1.0)


def test_another_number_of_threads_and_other_slices_go_on_all_the_same(stage: _Stage, whole: _Stage) -> None:
    stage.interrupt(0.4)
    files = stage.run(num_threads=1, memory=5_000)
    _assert_same(stage, files, whole)


def test_bytes_that_a_crash_lost_or_spoiled_are_written_again(stage: _Stage, whole: _Stage) -> None:
    """After a power cut a file may be shorter than its marks say, have zeros in it, or be missing."""
    chance = random.Random(0)
    kept = []
    for damage in range(12):
        stage.interrupt(0.75)
        path = chance.choice(sorted(stage.folder.glob("weights-*.bin")))
        content = bytearray(path.read_bytes())
        place = chance.randrange(len(content)) if content else 0
        if damage % 4 == 0:
            path.write_bytes(content[:place])
        elif damage % 4 == 1:
            path.write_bytes(content[:place] + bytes(len(content) - place))
        elif damage % 4 == 2:
            path.unlink()
        else:
            path.write_bytes(content + b"written, and not noted")
    for _ in range(2):
        files, fraction = stage.resume()
        kept.append(fraction)
    assert 0.3 < kept[0] < 1.0
    assert kept[1] == 1.0
    _assert_same(stage, files, whole)


def test_a_journal_that_was_cut_costs_only_what_it_noted_last(stage: _Stage, whole: _Stage) -> None:
    stage.interrupt(0.8)
    journal = stage.folder / JOURNAL_NAME
    journal.write_bytes(journal.read_bytes()[: journal.stat().st_size * 3 // 4])
    files, kept = stage.resume()
    assert 0.0 < kept < 0.8
    _assert_same(stage, files, whole)


def test_without_a_journal_everything_is_written_again(stage: _Stage, whole: _Stage) -> None:
    stage.interrupt(0.8)
    (stage.folder / JOURNAL_NAME).unlink()
    files, kept = stage.resume()
    assert kept == 0.0
    _assert_same(stage, files, whole)


def test_a_mark_is_not_believed_without_its_bytes(stage: _Stage, whole: _Stage) -> None:
    stage.interrupt(0.5)
    file = os.open(stage.folder / JOURNAL_NAME, os.O_RDWR)
    for shard in range(1, 12):
        size = (stage.folder / f"weights-{shard:05d}.bin").stat().st_size if shard < 3 else 1 << 60
        Journal(file).add_mark(Mark(shard, (Noted(size + 512, "0" * 64), Noted(64, "0" * 64))))
    os.close(file)
    files, kept = stage.resume()
    assert 0.4 < kept < 0.6
    _assert_same(stage, files, whole)


def test_a_disk_that_fills_up_and_is_made_larger_loses_nothing(
    tiny_checkpoint: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = _Stage(tiny_checkpoint, small_disk / "artifact", "fp32")
    with monkeypatch.context() as patched:
        patched.setattr(ExternalDataWriter, "_free_bytes", lambda self: 10**9)  # others take it meanwhile
        with pytest.raises(OutputError, match=r"No space left on device.* are still to be written; free some space"):
            stage.run()
    with pytest.raises(OutputError, match=r"has [\d.]+ kB free and the weights need 1\.\d\d MB: free some space"):
        stage.run()
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    files, kept = stage.resume()
    assert 0.1 < kept < 0.6
    _assert_same(stage, files, _Stage(tiny_checkpoint, tmp_path / "whole", "fp32"))


def test_verifying_is_reported_and_can_be_interrupted(stage: _Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.interrupt(0.9)
    monkeypatch.setattr("qwonnx.export.weight_files.resume._REPORT_SECONDS", 0.0)
    seen: list[ExportProgress] = []

    def stop(progress: ExportProgress) -> None:
        seen.append(progress)
        if len(seen) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.run(stop)
    assert seen[0].stage == "verify"
    assert 0 <= seen[0].done_bytes <= seen[0].total_bytes
    assert stage.resume()[1] >= 0.85
