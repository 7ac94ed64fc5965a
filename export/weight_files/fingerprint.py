"""Everything that decides the bytes of an export's weight files: exports with equal fingerprints write equal bytes.

A checkpoint's files contribute their names, sizes, times of change (elsewhere: versions or ETags) and headers. Hashing
their contents would take as long as the export; the time of change shows that a file was replaced.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from qwonnx.export.adapters.adapter import Adapter
from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.runtime.artifact.manifest import SourceFacts


def export_fingerprint(
    checkpoint: Checkpoint,
    source: SourceFacts,
    config: ModelConfig,
    recipe: Recipe,
    choice: Mapping[str, str],
    calibration: str | None,
    adapters: Sequence[Adapter] = (),
    adapter_projections: Sequence[str] = (),
) -> dict[str, Any]:
    """The fingerprint, as it is read back from JSON.

    Args:
        checkpoint, source, config, recipe: what is exported, and how its weights are stored.
        choice: the target and its types, by name.
        calibration: the text, if there is one.
        adapters: that are merged into the checkpoint, in their order.
        adapter_projections: that adapters can change while the model runs.
    """
    fingerprint = {
        "qwonnx": version("qwonnx"),
        "torch": version("torch"),  # it does the arithmetic
        **choice,
        "calibration": calibration and hashlib.sha256(calibration.encode()).hexdigest(),
        "recipe": dataclasses.asdict(recipe),
        "checkpoint": dataclasses.asdict(source),
        "adapters": [{"tensors": adapter.sha256, "config": adapter.config_sha256} for adapter in adapters],
        "runtime adapters": ", ".join(adapter_projections),
        "config": dataclasses.asdict(config),
        "files": {
            file.name: {"size": file.size, "changed": file.version, "header": file.header_sha256}
            for file in checkpoint.files
        },
    }
    as_json: dict[str, Any] = json.loads(json.dumps(fingerprint))
    return as_json


def difference(begun: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first difference of two fingerprints, for display; None if they are equal."""
    before, after = dict(_leaves(begun)), dict(_leaves(now))
    for name in dict.fromkeys((*after, *before)):
        if before.get(name) != after.get(name):
            old, new = (_shown(leaves.get(name)) for leaves in (before, after))
            return f"{name} was {old} and is now {new}"
    return None


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name} {key}".lstrip())
    else:
        yield name, value


def _shown(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
