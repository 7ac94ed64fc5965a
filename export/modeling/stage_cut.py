"""Which layers a graph has, if the model is cut into stages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwonnx.export.errors import ExportError
from qwonnx.runtime.artifact.manifest import StageFacts


@dataclass(frozen=True, slots=True)
class StageCut:
    """One stage: the layers first..end-1. The first stage also has the embedding, the last one the norm and the head.

    number counts from 1.
    """

    number: int
    count: int
    first: int
    end: int

    @property
    def is_first(self) -> bool:
        return self.number == 1

    @property
    def is_last(self) -> bool:
        return self.number == self.count

    def facts(self, fingerprint: Mapping[str, Any]) -> StageFacts:
        """The manifest's entry. Stages of one export have one digest.

        Args:
            fingerprint: of the export.
        """
        text = json.dumps(fingerprint, sort_keys=True)
        return StageFacts(self.number, self.count, hashlib.sha256(text.encode()).hexdigest())


def cut_layers(num_layers: int, count: int) -> tuple[StageCut, ...]:
    """Cut layers into stages of nearly equal numbers of layers.

    Raises:
        ExportError: count is below 2, or more than the layers.
    """
    if not 2 <= count <= num_layers:
        raise ExportError(f"{count} stages cannot be made of {num_layers} layers: give 2 to {num_layers}")
    ends = [num_layers * number // count for number in range(count + 1)]
    return tuple(StageCut(number, count, ends[number - 1], ends[number]) for number in range(1, count + 1))
