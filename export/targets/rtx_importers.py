"""The operators that the parser of NVIDIA's plugin TensorRT for RTX imports, and a check of a graph's nodes.

No GPU is needed: rtx_importers.txt has the names that the plugin's parser library has (infra/gpu/importer_table.py). A
name says nothing of types and attributes: rtx_lowering.py has what is known of these.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import onnx_ir as ir

TABLE = "rtx_importers.txt"


@cache
def rtx_importers() -> frozenset[str]:
    """Names of operators, whatever their domain."""
    text = files("qwonnx.export.targets").joinpath(TABLE).read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if not line.startswith("#"))


def without_importer(model: ir.Model) -> list[str]:
    """The nodes that the plugin cannot import, a line each; empty if it imports all."""
    return [
        f"{node.domain or 'ai.onnx'}::{node.op_type} ({node.outputs[0].name}) has no importer"
        for node in model.graph
        if node.op_type not in rtx_importers()
    ]
