"""Exports in separate processes, which are cheap to start and can be killed.

A server process imports torch and traces one checkpoint, once; every export is a fork of it that begins with the traced
model. Everything else is as in `qwonnx export`: reading, lowering, the weight stage, graph, manifest, renaming.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from qwonnx.export import pipeline
from qwonnx.export.checkpoint.config import load_config
from qwonnx.export.modeling.trace import trace_decoder
from qwonnx.export.pipeline import ExportOptions, export_checkpoint
from qwonnx.export.weight_files import layout
from qwonnx.export.weight_files.progress import ExportProgress
from qwonnx.export.weight_files.unfinished import incomplete_folder

_CHECKPOINT = "QWONNX_TEST_CHECKPOINT"  # what the server traces
_OPTIONS = ExportOptions(weights="fp32", num_threads=2, resume=True)

if multiprocessing.current_process().name == "MainProcess" and _CHECKPOINT in os.environ:  # in the server alone
    _traced = trace_decoder(load_config(Path(os.environ[_CHECKPOINT])))


class KillableExports:
    """Exports of one checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        os.environ[_CHECKPOINT] = str(checkpoint)  # the server starts with the first export

    def run(self, out: Path) -> list[ExportProgress]:
        """Begin or resume an export, and let it end."""
        ours, theirs = self._context.Pipe(duplex=False)
        with ours, self._started(out, theirs) as process:
            theirs.close()
            seen: list[ExportProgress] = []
            with suppress(EOFError):  # which is the end
                while True:
                    seen.append(ours.recv())
            process.join()
            assert process.exitcode == 0
        return seen

    def kill(self, out: Path, num_bytes: int) -> None:
        """Begin or resume an export, and kill it once its folder has so many bytes, or when it ends."""
        with self._started(out, None) as process:
            while process.is_alive() and _size(incomplete_folder(out)) < num_bytes:
                time.sleep(0.0005)
            process.kill()
            process.join()

    @contextmanager
    def _started(self, out: Path, progress: Connection | None) -> Iterator[multiprocessing.process.BaseProcess]:
        process = self._context.Process(target=_export, args=(self._checkpoint, out, progress), daemon=True)
        process.start()
        try:
            yield process
        finally:
            process.kill()
            process.join()


def _export(checkpoint: Path, out: Path, progress: Connection | None) -> None:
    # This process is ours alone.
    setattr(pipeline, trace_decoder.__name__, lambda config, cut=None: _traced)
    layout.MIN_SHARD_BYTES = 8 << 20  # several shards, of which two are written at a time
    export_checkpoint(checkpoint, out, _OPTIONS, on_progress=progress.send if progress else None)


def _size(folder: Path) -> int:
    """Bytes of the weight files in a folder; 0 if it does not exist."""
    try:
        return sum(path.stat().st_size for path in folder.glob("weights-*.bin"))
    except FileNotFoundError:
        return 0
