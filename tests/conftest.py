"""Fixtures of all tests."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.errors import NativeKernelsError
from qwonnx.runtime.native.build import BuildError, build, find_compiler
from qwonnx.runtime.native.library import VARIABLE, NativeLibrary, native_library
from tests.checkpoints import write_tiny
from tests.checkpoints.config_json import TINY_TEXT
from tests.cuda_standin import stand_in

if TYPE_CHECKING:
    from qwonnx.export import ExportOptions

# A shell that starts tests in the background makes them, and their child processes, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests of a time measure it themselves; an example that a busy machine holds up is no failure.
settings.register_profile("qwonnx", deadline=None)
settings.load_profile("qwonnx")

FAST = "fast"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m fast`, do not even import the modules without that marker: torch and transformers take seconds."""
    if config.getoption("markexpr") != FAST or not collection_path.name.startswith("test_"):
        return None
    return f"pytestmark = pytest.mark.{FAST}" not in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked soak take a cluster, minutes or downloads: they run where they are asked for."""
    if "soak" in config.getoption("markexpr"):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="make soak runs it"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was not tested."""
    if not stand_in.is_present():
        terminalreporter.write_line("not run: the CUDA target under a stand-in for its runtime (make cuda-standin)")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeLibrary]:
    """The installed native library, else one built for this run."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            found = native_library()
        except NativeKernelsError as missing:
            try:
                compiler = find_compiler()
            except BuildError as error:
                pytest.skip(str(error))
            if compiler is None:
                pytest.skip(f"{missing}, and there is no C++ compiler")
            path = tmp_path_factory.mktemp("native") / "library.so"
            build(path, compiler)
            patch.setenv(VARIABLE, str(path))
            found = native_library()
        yield found


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default tiny checkpoint (MoE, nested, BF16, one file), seed 0. Read only: copy it to change it."""
    return write_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def long_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of each kind with YaRN for a million tokens, dense; one head of keys keeps such a cache small."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262_144}
    overrides = {
        "rope_parameters": TINY_TEXT["rope_parameters"] | yarn,
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "num_key_value_heads": 1,
    }
    folder = tmp_path_factory.mktemp("checkpoint") / "long"
    return write_tiny(folder, architecture="Qwen3_5ForCausalLM", text_overrides=overrides)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB, to be filled."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(mounted)]
    try:
        done = subprocess.run(mount, check=False, capture_output=True)
    except OSError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("mounting needs root")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


@pytest.fixture(scope="session")
def export_tiny(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[ExportOptions], Artifact]:
    """The tiny checkpoint's artifact under given options."""
    from qwonnx.export import export_checkpoint  # imports torch, which not every test needs

    made: dict[ExportOptions, Artifact] = {}

    def export(options: ExportOptions) -> Artifact:
        if options not in made:
            out = tmp_path_factory.mktemp("artifact") / f"{options.target}-{options.weights}"
            export_checkpoint(tiny_checkpoint, out, options)
            made[options] = open_artifact(out, verify=True)
        return made[options]

    return export


@pytest.fixture(scope="session")
def tiny_fp32(export_tiny: Callable[[ExportOptions], Artifact]) -> Artifact:
    from qwonnx.export import ExportOptions

    return export_tiny(ExportOptions(weights="fp32"))
