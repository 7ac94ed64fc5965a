"""A start of `qwonnx serve`: what it may import and cost. Wall times are not judged: the machine may be busy."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from qwonnx.handlers.bench.cold_start import serve_command
from qwonnx.handlers.bench.start import measure
from tests.handlers.cli.commands import FAST, QWONNX
from tests.handlers.whole.served_process import process_serving

# Twice what an idle processor of 2021 takes; a tenth of what one more large package would add must not hide in it.
MOST_CPU_SECONDS = 1.2
MOST_MODULES = 630
ABSENT = (
    *("typer", "rich", "pydantic", "torch", "onnx", "transformers", "huggingface_hub", "llguidance", "fsspec"),
    *("mangum", "ray", "qwonnx.export", "qwonnx.handlers.functions.platform", "qwonnx.handlers.routing"),
    *("qwonnx.runtime.cuda.device", "qwonnx.runtime.model.tensorrt", "numpy.testing", "importlib.metadata"),
    *("numpy.random", "click", "uvicorn.main", "multiprocessing", "qwonnx.handlers.configuration.file"),
    "qwonnx.handlers.models.stored_models",
)
# A dataclass takes 0.4 ms to define and a msgspec.Struct 0.01, so a server's other modules have the latter. These are
# imported before the port listens, when only the standard library is; or describe the artifact format; or are values
# of users, who may change them with dataclasses.replace().
WITH_DATACLASSES = {
    *(
        "handlers/http/api_keys.py",
        "handlers/configuration/environment.py",
        "handlers/settings.py",
        "handlers/cli/serve_options.py",
    ),
    *("runtime/engine/startup.py", "runtime/settings.py", "runtime/artifact/folder.py", "runtime/artifact/manifest.py"),
    *("runtime/sampling/guide.py", "runtime/sampling/params.py"),
}
ROOT = Path(__file__).resolve().parents[3]


def test_a_start_costs_little_processor_time(counting_folder: Path) -> None:
    command = serve_command(counting_folder, ["--max-model-len", "256", "--threads", "1"])
    starts = [measure(command, seconds=60) for _ in range(2)]
    assert min(start.cpu_s for start in starts) < MOST_CPU_SECONDS
    assert min(start.anonymous_bytes for start in starts) < 90e6


def test_a_server_that_has_answered_has_imported_no_more_than_it_needs(counting_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with process_serving(counting_folder, log, "--max-model-len", 256, PYTHONPROFILEIMPORTTIME="1") as served:
        body = b'{"model": "%s", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}'
        assert served.post(body % served.model.encode()).status == 200
    imported = set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)", log.read_text(), re.MULTILINE))
    assert {"onnxruntime", "uvicorn.server", "qwonnx.handlers.app"} <= imported
    assert not imported & set(ABSENT)
    assert len(imported) < MOST_MODULES
    ours = {name.replace(".", "/").removeprefix("qwonnx/") + ".py" for name in imported if name.startswith("qwonnx.")}
    sources = {name: (ROOT / name).read_text() for name in ours if (ROOT / name).is_file()}
    assert {name for name, source in sources.items() if "\n@dataclass" in source} <= WITH_DATACLASSES
    assert len(sources) > 100


def test_a_server_leaves_blas_one_thread_unless_told_otherwise(counting_folder: Path) -> None:
    program = (
        "import sys, os; from qwonnx.runtime.machine import prepare_process; prepare_process(); import numpy; "
        "print(os.environ['OPENBLAS_NUM_THREADS'], len(os.listdir('/proc/self/task')))"
    )
    for given, threads in (({}, "1 1"), ({"OPENBLAS_NUM_THREADS": "2"}, "2 2")):
        environment = {**os.environ, **FAST, **given}
        if not given:
            environment.pop("OPENBLAS_NUM_THREADS", None)
        result = subprocess.run([QWONNX[0], "-c", program], capture_output=True, text=True, env=environment, check=True)
        assert result.stdout.strip() == threads
