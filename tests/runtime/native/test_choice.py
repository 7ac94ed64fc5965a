"""The choice of kernels: what is asked for, what can be had, and what is said."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from qwonnx.runtime.errors import NativeKernelsError
from qwonnx.runtime.native.choice import KernelChoice, choose_kernels
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.native.library import VARIABLE, NativeLibrary

pytestmark = pytest.mark.fast

OPERATORS = ("QuantizedLinear",)


def chosen(kernels: Kernels, operators: tuple[str, ...] = OPERATORS, *, on_cpu: bool = True) -> KernelChoice:
    return choose_kernels(kernels, operators, onnxruntime.SessionOptions, on_cpu=on_cpu)


@pytest.mark.parametrize("kernels", [Kernels.AUTO, Kernels.NATIVE])
def test_native_ones_are_taken_where_there_is_a_library(library: NativeLibrary, kernels: Kernels) -> None:
    assert chosen(kernels) == KernelChoice(library)
    assert chosen(kernels).name == f"native ({library.instructions})"


def test_those_of_onnx_runtime_are_taken_where_they_are_asked_for(library: NativeLibrary) -> None:
    assert chosen(Kernels.ONNXRUNTIME) == KernelChoice(None)
    assert chosen(Kernels.ONNXRUNTIME).name == "onnxruntime"


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_without_a_library_the_reason_is_told_and_native_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    path = tmp_path / "library.so"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv(VARIABLE, str(path))
    found = chosen(Kernels.AUTO)
    assert found.library is None
    assert found.missing.startswith("ONNX Runtime's kernels run instead of native ones: ")
    assert str(path) in found.missing
    with pytest.raises(NativeKernelsError, match="kernels is native, and "):
        chosen(Kernels.NATIVE)
    assert chosen(Kernels.ONNXRUNTIME) == KernelChoice(None)


def test_a_library_that_does_not_know_this_onnx_runtime_is_not_used(library: NativeLibrary) -> None:
    class Refusing:
        def register_custom_ops_library(self, path: str) -> None:
            """Registers nothing."""

    found = choose_kernels(Kernels.AUTO, OPERATORS, Refusing)
    assert "does not know this ONNX Runtime's interface" in found.missing
    with pytest.raises(NativeKernelsError, match="interface"):
        choose_kernels(Kernels.NATIVE, OPERATORS, Refusing)


def test_a_graph_without_such_operators_and_another_provider_need_none() -> None:
    assert chosen(Kernels.AUTO, ()) == chosen(Kernels.AUTO, on_cpu=False) == KernelChoice(None)
    with pytest.raises(NativeKernelsError, match="export the checkpoint again"):
        chosen(Kernels.NATIVE, ())
    with pytest.raises(NativeKernelsError, match="CPUExecutionProvider"):
        chosen(Kernels.NATIVE, on_cpu=False)
