"""The schemas of manifest.json: a document of an older one as the newest has it, and back.

An artifact's id is the hash of its manifest as it was written, so the way back gives its bytes.
"""

from __future__ import annotations

from typing import Any

from qwonnx.runtime.artifact.file_names import DECODER

# 1: keys and values are float32. 2: QuantizationFacts.kv says what they are. 3: every graph has its own states.
# 4: GraphSpec.native_operators. 5: Manifest.stage. 6: Manifest.adapters. 7: adapter_targets, SourceFacts.files.
SCHEMA_VERSION = 7


def as_newest(document: dict[str, Any], version: int) -> dict[str, Any]:
    """Add the fields that a document of an older schema lacks; schema_version stays."""
    if version < 2 and isinstance(quantization := document.get("quantization"), dict):
        document = {**document, "quantization": {"kv": "float32", **quantization}}
    if version < 3 and isinstance(graphs := document.get("graphs"), dict) and "states" in document:
        document = {**document, "graphs": {name: _with_states(name, graph, document) for name, graph in graphs.items()}}
        del document["states"]
    if version < 4 and isinstance(graphs := document.get("graphs"), dict):
        document = {**document, "graphs": {name: _without_kernels(graph) for name, graph in graphs.items()}}
    if version < 5:
        whole = None if "stage" in document else {"number": 1, "count": 1, "export": ""}  # build() refuses None
        document = {**document, "stage": whole}
    if version < 6:
        document = {**document, "adapters": None if "adapters" in document else []}
    if version < 7:
        document = {**document, "adapter_targets": None if "adapter_targets" in document else []}
    if version < 7 and isinstance(source := document.get("source"), dict):
        document = {**document, "source": {**source, "files": None if "files" in source else []}}
    return document


def _without_kernels(graph: Any) -> Any:
    """A graph of an older schema, which native kernels cannot run."""
    if not isinstance(graph, dict) or "native_operators" in graph:
        return None  # build() refuses it
    return {**graph, "native_operators": []}


def _with_states(name: str, graph: Any, document: dict[str, Any]) -> Any:
    """Add states to a graph of an older schema, in which the manifest held the decoder's states."""
    if not isinstance(graph, dict) or "states" in graph:
        return None  # build() refuses it
    return {**graph, "states": document["states"] if name == DECODER else []}


def as_written(document: dict[str, Any], version: int) -> dict[str, Any]:
    """Remove the fields that an older schema does not have, in place; return the document."""
    if version < 7:
        del document["adapter_targets"]
        del document["source"]["files"]
    if version < 6:
        del document["adapters"]
    if version < 5:
        del document["stage"]
    if version < 4:
        for graph in document["graphs"].values():
            del graph["native_operators"]
    if version < 3:
        # Older schemas have the decoder's states before the files. The order must stay: an artifact's id depends on it.
        states, files = [graph.pop("states") for graph in document["graphs"].values()], document.pop("files")
        document |= {"states": next(filter(None, states), ()), "files": files}
    return document
