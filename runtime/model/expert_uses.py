"""How often each expert was needed, kept beside an artifact, so that a new process reads the most used ones first.

    experts.json     {"artifact": the artifact's id, "uses": [[tokens of each expert], ... of each layer]}

The file is no part of the manifest, like baked prefixes: it says nothing about answers. One that cannot be used is
named in the log and ignored.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.artifact.strict_json import StrictJsonError, read_object

logger = logging.getLogger(__name__)

FILE = "experts.json"
_MAX_BYTES = 16 << 20
_MAX_USES = 1 << 62


def load(artifact: Artifact) -> list[list[float]]:
    """The share of tokens that needed each expert, by layer with experts; empty if that is not known.

    Every layer has as many shares as the model has experts. The number of layers is the file's.
    """
    path = artifact.folder / FILE
    if not path.exists():
        return []
    try:
        document = read_object(path, _MAX_BYTES)
    except (OSError, StrictJsonError) as error:
        return _ignored(path, str(error))
    if set(document) != {"artifact", "uses"} or not isinstance(document["uses"], list):
        return _ignored(path, "it has other fields than artifact and uses")
    if document["artifact"] != artifact.id:
        return _ignored(path, "it belongs to another artifact")
    facts = artifact.manifest.model
    shares: list[list[float]] = []
    for layer in document["uses"]:
        if not isinstance(layer, list) or len(layer) != facts.num_experts or len(shares) >= facts.num_hidden_layers:
            return _ignored(path, "it has another number of layers or experts than the model")
        if not all(type(uses) is int and 0 <= uses <= _MAX_USES for uses in layer):
            return _ignored(path, "uses are not whole numbers")
        tokens = sum(layer) / max(1, facts.num_experts_per_tok)
        shares.append([min(1.0, uses / tokens) if tokens else 0.0 for uses in layer])
    return shares


def save(artifact: Artifact, uses: Sequence[Sequence[int]]) -> Path:
    """Write the file, atomically; an existing one is replaced.

    Raises:
        OSError: it cannot be written.
    """
    path = artifact.folder / FILE
    part = path.with_name(f".{FILE}.{os.urandom(4).hex()}")
    try:
        with part.open("x", encoding="utf-8") as file:
            json.dump({"artifact": artifact.id, "uses": [list(layer) for layer in uses]}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _ignored(path: Path, reason: str) -> list[list[float]]:
    logger.warning("%s is not used: %s; `qwonnx bake --experts` writes it anew", path, reason)
    return []
