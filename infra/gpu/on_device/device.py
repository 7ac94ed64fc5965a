"""The device itself: its name, its memory, one kernel, how fast it copies, and how fast it chooses from logits."""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime

from infra.gpu.on_device.finding import Bundle, Check, Finding
from infra.gpu.on_device.session import first_device, open_session, run_timed
from qwonnx.runtime.cuda.device import Block, CopyKind

RELU, TOP = "relu.onnx", "largest_logits.onnx"  # graphs among the operators
COPY_JSON = "copy_rate.json"  # what the group geometry compares with
_LARGEST_COPY, _REPEATS = 1 << 30, 20


def checks(bundle: Bundle) -> Iterator[Check]:
    yield Check("device/found", _found)
    yield Check("device/kernel", lambda: _kernel(bundle))
    yield Check("device/copy", lambda: _copy(bundle))
    for batch in (1, 8):
        yield Check(f"device/largest logits of {batch}", partial(_largest, bundle, batch))


def _found() -> Finding:
    device = first_device()
    library, version = ctypes.CDLL("libcudart.so.13"), ctypes.c_int()
    library.cudaDriverGetVersion(ctypes.byref(version))
    memory, (major, minor) = device.memory(), device.compute_capability
    detail = f"{device.name}, compute capability {major}.{minor}, driver for CUDA {version.value / 1000:g}"
    detail += f", onnxruntime {onnxruntime.__version__}"
    return Finding(True, detail, {"free_bytes": memory.free_bytes, "total_bytes": memory.total_bytes})


def _kernel(bundle: Bundle) -> Finding:
    """A reduced provider library that lacks this device's code fails here, with "no kernel image is available"."""
    session = open_session(bundle.folder / "operators" / RELU)
    x = np.linspace(-2, 2, 64, dtype=np.float16)
    (found,) = session.run(None, {"x": x})
    return bundle.judged(bool(np.array_equal(found, np.maximum(x, 0))), "Relu of 64 values")


def _copy(bundle: Bundle) -> Finding:
    device = first_device()
    num_bytes = min(_LARGEST_COPY, device.memory().free_bytes // 4) if bundle.checks_values else 1 << 20
    source, target = device.allocate(num_bytes), device.allocate(num_bytes)
    blocks = Block(target.address, num_bytes), Block(source.address, num_bytes)
    seconds = []
    for _ in range(3):
        device.synchronize()
        start = time.perf_counter()
        for _ in range(_REPEATS):
            device.copy(CopyKind.ON_DEVICE, *blocks, num_bytes)
        device.synchronize()
        seconds.append((time.perf_counter() - start) / _REPEATS)
    rate = 2 * num_bytes / min(seconds)
    write_rate(bundle.folder, rate)
    return Finding(True, f"copies at {rate / 1e9:.0f} GB/s, read and written", {"bytes_per_second": rate})


def _largest(bundle: Bundle, batch: int) -> Finding:
    """The largest logits of whole rows, as the graph chooses them, beside a copy of the rows to the host."""
    device = first_device()
    session = open_session(bundle.folder / "operators" / TOP)
    vocab_size, count = (session.get_inputs()[0].shape[-1], session.get_outputs()[0].shape[-1])
    logits = np.random.default_rng(0).standard_normal((batch, 1, vocab_size), np.float32).astype(np.float16)
    order = np.sort(logits, axis=-1)[..., : -count - 1 : -1]
    found, seconds = run_timed(session, {"logits": logits}, _REPEATS)
    host, rows = device.pinned(logits.shape, np.float32), device.allocate(4 * logits.size)
    blocks = Block(host.ctypes.data, host.nbytes), Block(rows.address, host.nbytes)
    start = time.perf_counter()
    for _ in range(_REPEATS):
        device.copy(CopyKind.TO_HOST, *blocks, host.nbytes)
    device.synchronize()
    copied = (time.perf_counter() - start) / _REPEATS
    detail = f"{1e6 * seconds:.0f} us, and {1e6 * copied:.0f} us to copy all {vocab_size} of each row"
    figures = {"choose_seconds": seconds, "copy_seconds": copied}
    return bundle.judged(np.array_equal(found["values"], order), detail, figures)


def write_rate(folder: Path, rate: float) -> None:
    (folder / COPY_JSON).write_text(json.dumps(rate), encoding="utf-8")


def read_rate(folder: Path) -> float | None:
    """Bytes read and written per second, as measured; None: not measured."""
    path = folder / COPY_JSON
    return float(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
