"""The tree of a server, made once from this environment's packages: no network, and no hash is checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from infra.shipping.image_root import ROOT, add_wheel, build_wheel, compile_tree, copy_installed, prune
from infra.shipping.lock_file import lock_path, read_lock
from qwonnx.runtime.native.build import LIBRARY
from tests.runtime import counting_model


@pytest.fixture(scope="session")
def serving_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As infra/shipping/image_root.py builds it from the lock, with the library of kernels if it is compiled here."""
    root = tmp_path_factory.mktemp("image") / "app"
    copy_installed((pin.name for pin in read_lock(lock_path("cpu"))), root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QWONNX_NATIVE_BUILD", "0")
        add_wheel(build_wheel(tmp_path_factory.mktemp("wheel"), "--no-build-isolation"), root)
    compiled = ROOT / "runtime" / "native" / LIBRARY
    if compiled.exists():
        shutil.copy(compiled, root / "qwonnx" / "runtime" / "native")
    prune(root)
    compile_tree(root)
    return root


@pytest.fixture(scope="session")
def counting_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_model.make(tmp_path_factory.mktemp("counting") / "artifact").folder
