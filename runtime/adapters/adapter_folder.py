"""One LoRA adapter of a running model: its files, checked against the artifact, and its numbers in a slot.

A slot holds two matrices for every target of the artifact (runtime/artifact/manifest.py: AdapterTarget). The adapter's
scaling is multiplied into the second one; where the adapter has nothing, there are zeros.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwonnx.runtime.adapters.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterConfig, read_adapter_config
from qwonnx.runtime.adapters.tensor_file import Floats, Tensor, TensorFile
from qwonnx.runtime.adapters.tensor_names import Part, TensorName, read_name, why_unused
from qwonnx.runtime.artifact.folder import file_sha256
from qwonnx.runtime.artifact.manifest import AdapterTarget
from qwonnx.runtime.artifact.strict_json import quoted
from qwonnx.runtime.errors import AdapterError

MAX_RANK = 256  # as the kernel takes it (sources/layer_kernels.h)
_MERGE = "merge it with `qwonnx export --adapter`"


@dataclass(frozen=True, slots=True)
class _Factors:
    """The factors of one target: A [rank, num_inputs], B [num_outputs, rank], and what multiplies their product."""

    a: Tensor
    b: Tensor
    scaling: float


class AdapterFolder:
    """An adapter that a running model can load.

    Args:
        name: in requests.
        folder: as peft's save_pretrained wrote it.
        targets: of the artifact.

    Attributes:
        digest: hexadecimal sha256 of what changes answers: equal adapters have equal ones, whatever their names.
        rank: the largest of its modules.

    Raises:
        AdapterError: it is malformed, of a kind that is only merged, or changes what the artifact's graph does not let
            it change. Every tensor is used, or this names it.
    """

    def __init__(self, name: str, folder: Path, targets: Sequence[AdapterTarget]) -> None:
        self.name, self.folder = name, folder
        self._targets = tuple(targets)
        config = read_adapter_config(folder)
        if config.is_dora:
            raise AdapterError(f"{folder} is of DoRA, which changes whole matrices: {_MERGE}")
        path = folder / ADAPTER_WEIGHTS
        if not path.is_file():
            raise AdapterError(f"{folder} has no {ADAPTER_WEIGHTS}: give the folder that peft's save_pretrained wrote")
        self._file = TensorFile(path)
        self._factors = _factors(self._file, config, {target.module: target for target in targets})
        self.rank = max((each.a.shape[0] for each in self._factors.values()), default=1)
        if self.rank > MAX_RANK:
            raise AdapterError(f"{folder} has rank {self.rank} and at most {MAX_RANK} is possible: {_MERGE}")
        digest = hashlib.sha256((folder / ADAPTER_CONFIG).read_bytes())
        digest.update(bytes.fromhex(file_sha256(path)))
        self.digest = digest.hexdigest()

    def write(self, slot: Floats) -> None:
        """Write its numbers into a slot [width, rank of slots], which may hold anything.

        Raises:
            AdapterError: its file has changed, or has numbers that are not finite.
        """
        slots_rank, start = slot.shape[1], 0
        for target in self._targets:
            middle, end = start + target.num_inputs, start + target.width
            down, up = slot[start:middle], slot[middle:end].reshape(slots_rank, target.num_outputs)
            start = end
            factors = self._factors.get(target.module)
            rank = 0 if factors is None else factors.a.shape[0]
            down[:, rank:] = 0
            up[rank:] = 0
            if factors is not None:
                down[:, :rank] = self._file.read(factors.a).T
                up[:rank] = self._file.read(factors.b).T
                up[:rank] *= factors.scaling


def _factors(file: TensorFile, config: AdapterConfig, targets: dict[str, AdapterTarget]) -> dict[str, _Factors]:
    """The factors by module."""
    found: dict[str, dict[Part, tuple[TensorName, Tensor]]] = {}
    for tensor in file.tensors:
        name = read_name(tensor.name)
        if name is None:
            reason = why_unused(tensor.name) or "changes nothing in the model: the adapter was trained on another one"
            raise AdapterError(f"{file.path}: {quoted(tensor.name)} {reason}")
        if name.part not in (Part.A, Part.B) or name.depth:
            raise AdapterError(f"{file.path}: {quoted(tensor.name)} is not of a projection alone: {_MERGE}")
        if name.ours not in targets:
            raise AdapterError(f"{file.path}: {quoted(tensor.name)} {_no_target(name.ours, targets)}")
        parts = found.setdefault(name.ours, {})
        if name.part in parts:
            raise AdapterError(f"{file.path} has {quoted(tensor.name)} twice, under two names: remove one")
        parts[name.part] = name, tensor
    return dict(_checked(file.path, config, targets, found))


def _checked(
    path: Path,
    config: AdapterConfig,
    targets: dict[str, AdapterTarget],
    found: dict[str, dict[Part, tuple[TensorName, Tensor]]],
) -> Iterator[tuple[str, _Factors]]:
    for module, parts in found.items():
        if parts.keys() != {Part.A, Part.B}:
            raise AdapterError(f"{path}: {quoted(module)} has one factor of two: the adapter was not saved whole")
        (name, a), (_, b) = parts[Part.A], parts[Part.B]
        rank, target = config.rank_of(name.module), targets[module]
        if a.shape != (rank, target.num_inputs) or b.shape != (target.num_outputs, rank):
            raise AdapterError(
                f"{path}: the factors of {quoted(module)} are {list(a.shape)} and {list(b.shape)}, and should be"
                f" {[rank, target.num_inputs]} and {[target.num_outputs, rank]}: it was trained on another model, or"
                f" its {ADAPTER_CONFIG} is of another adapter"
            )
        yield module, _Factors(a, b, config.scaling_of(name.module))


def _no_target(module: str, targets: dict[str, AdapterTarget]) -> str:
    last = module.rpartition(".")[2]
    names = {name.rpartition(".")[2] for name in targets}
    if last in names:
        return "is of a layer that the model does not have: the adapter was trained on another one"
    known = ", ".join(sorted(names))
    return f"changes {last}, and the artifact takes adapters of {known} only: export it with {last} too, or {_MERGE}"
