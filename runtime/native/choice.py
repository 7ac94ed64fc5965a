"""Which kernels a graph runs on: those of the native library, or ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from qwonnx.runtime.errors import NativeKernelsError
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.native.library import NativeLibrary, native_library


class KernelChoice(Struct, frozen=True):
    """What a session gets.

    library: to be registered with it; None: ONNX Runtime's kernels run.
    missing: why native kernels that would have been taken do not run, in a sentence; empty if there is nothing to say.
    """

    library: NativeLibrary | None
    missing: str = ""

    @property
    def name(self) -> str:
        """For a log line."""
        return f"native ({self.library.instructions})" if self.library else "onnxruntime"


def choose_kernels(
    kernels: Kernels, native_operators: Sequence[str], new_options: Callable[[], Any], *, on_cpu: bool = True
) -> KernelChoice:
    """The kernels of one graph.

    Args:
        kernels: as asked for.
        native_operators: of the graph, from the manifest.
        new_options: makes onnxruntime.SessionOptions, on which registration is tried.
        on_cpu: whether the graph runs on ONNX Runtime's CPU provider, for which native kernels are written.

    Raises:
        NativeKernelsError: native kernels are asked for and cannot be had, or the graph has no use for them.
    """
    if kernels is Kernels.ONNXRUNTIME:
        return KernelChoice(None)
    wanted = kernels is Kernels.NATIVE
    if not native_operators or not on_cpu:
        if wanted and on_cpu:
            raise NativeKernelsError(
                "kernels is native and this artifact has no operators for native kernels: export the checkpoint again"
                " with quantised weights for the target cpu, or choose kernels auto"
            )
        if wanted:
            raise NativeKernelsError("kernels is native and the first provider is not CPUExecutionProvider: change one")
        return KernelChoice(None)
    try:
        library = native_library()
        library.register(new_options())
        return KernelChoice(library)
    except NativeKernelsError as error:
        if wanted:
            raise NativeKernelsError(f"kernels is native, and {error}") from error
        return KernelChoice(None, f"ONNX Runtime's kernels run instead of native ones: {error}")
