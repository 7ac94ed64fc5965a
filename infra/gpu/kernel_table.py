"""Write the table of CUDA kernels of the installed onnxruntime-gpu, export/targets/cuda_kernels.txt.

    LD_LIBRARY_PATH=STANDIN python infra/gpu/kernel_table.py >export/targets/cuda_kernels.txt

A line is a kernel: domain, operator, first and last version of the operator (none: all later ones), and the types of
each type parameter. STANDIN is the folder that tests/cuda_standin/build.py makes, with the libraries of
TensorRT: ONNX Runtime lists no kernels before it can load the libraries of all its providers. Run it again for every
release that is supported.
"""

from __future__ import annotations

import sys
from typing import Any

import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as binding

_PROVIDER = "CUDAExecutionProvider"
_NO_LAST_VERSION = 2147483647
# Graphs are of opset 21 or later: a kernel for older versions alone is never chosen.
_OLDEST_OPSET = 21
# Layouts that ONNX Runtime uses for convolutions, and classical machine learning: no decoder has them.
_LEFT_OUT = ("com.ms.internal.nhwc", "ai.onnx.ml")


def main() -> int:
    load_providers()
    kernels = [each for each in binding.get_all_opkernel_def() if each.provider == _PROVIDER]
    if not kernels:
        print("this onnxruntime has no CUDA kernels: install onnxruntime-gpu", file=sys.stderr)
        return 2
    lines = sorted(line(kernel) for kernel in kernels if is_wanted(kernel))
    print(f"# CUDA kernels of onnxruntime-gpu {onnxruntime.__version__}, by infra/gpu/kernel_table.py")
    print("\n".join(lines))
    return 0


def load_providers() -> None:
    """Open a CUDA session, so that its library is loaded and its kernels are known."""
    onnxruntime.set_default_logger_severity(4)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "one_node",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnxruntime.InferenceSession(model.SerializeToString(), providers=[_PROVIDER])


def is_wanted(kernel: Any) -> bool:
    # Contributed operators count their own versions.
    is_old = not kernel.domain and kernel.version_range[1] < _OLDEST_OPSET
    return kernel.domain not in _LEFT_OUT and not is_old


def line(kernel: Any) -> str:
    types = (
        f"{parameter}={'|'.join(name.removeprefix('tensor(').removesuffix(')') for name in names)}"
        for parameter, names in sorted(kernel.type_constraints.items())
    )
    first, last = kernel.version_range
    versions = f"{first}-{'' if last == _NO_LAST_VERSION else last}"
    return " ".join([kernel.domain or "ai.onnx", kernel.op_name, versions, *types])


if __name__ == "__main__":
    sys.exit(main())
