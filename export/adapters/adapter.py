"""One adapter: a folder with adapter_config.json and adapter_model.safetensors, opened and sorted by modules."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from qwonnx.export.adapters.adapter_config import read_adapter_config
from qwonnx.export.checkpoint.checkpoint import FLOAT_DTYPES, Checkpoint
from qwonnx.export.checkpoint.safetensors_header import read_header
from qwonnx.export.checkpoint.stored_file import LocalFile
from qwonnx.export.checkpoint.weight_names import EXPERTS
from qwonnx.export.errors import AdapterError
from qwonnx.runtime.adapters.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterConfig
from qwonnx.runtime.adapters.tensor_names import Part, TensorName, read_name, why_unused
from qwonnx.runtime.artifact.folder import file_sha256
from qwonnx.runtime.artifact.strict_json import quoted

Key = TypeVar("Key")


@dataclass(slots=True)
class LoraModule:
    """The factors of one module: names of their tensors; None until one is found."""

    name: str  # in the trained model, for patterns of adapter_config.json
    ours: str  # within the text model
    depth: int
    parts: dict[Part, str] = field(default_factory=dict)

    @property
    def is_embedding(self) -> bool:
        return Part.EMBEDDING_A in self.parts

    @property
    def is_experts(self) -> bool:
        """Whether the factors are of a parameter of all experts of a layer."""
        return self.ours.endswith(f".{EXPERTS}")

    @property
    def shown(self) -> str:
        """A tensor's name, for messages."""
        return next(iter(self.parts.values()))


@dataclass(frozen=True, slots=True)
class Adapter:
    """An opened adapter; it holds no open file and no values.

    modules have a product of factors. wholes are tensors that replace one of the base, by our name of that: not as
    WeightSource names it, but as the checkpoint does behind its prefix ("layers.0.linear_attn.A_log").
    """

    name: str  # of the folder or the repository, printable
    path: Path  # of the tensors' file
    config: AdapterConfig
    tensors: Checkpoint
    modules: tuple[LoraModule, ...]
    wholes: dict[str, str]
    sha256: str  # of the tensors' file
    config_sha256: str

    def shapes(self, module: LoraModule, *parts: Part) -> tuple[tuple[int, ...], ...]:
        """Shapes of a module's tensors."""
        return tuple(self.tensors.info(module.parts[part]).shape for part in parts)

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Check a tensor's shape and type.

        Raises:
            AdapterError: it has others.
        """
        info = self.tensors.info(name)
        if info.shape != shape:
            raise AdapterError(
                f"{self.path}: {quoted(name)} has the shape {list(info.shape)} where its base and"
                f" {ADAPTER_CONFIG} ask for {list(shape)}: the base is another model, or the file is of another save"
            )
        if info.dtype not in FLOAT_DTYPES:
            raise AdapterError(
                f"{self.path}: {quoted(name)} is stored as {info.dtype}: save it in {' or '.join(FLOAT_DTYPES)}"
            )


def open_adapter(folder: Path, name: str | None = None) -> Adapter:
    """Read an adapter's configuration and the header of its tensors.

    Args:
        folder: the adapter's.
        name: of the adapter; None: the folder's.

    Raises:
        AdapterError: it is not a LoRA or DoRA adapter in safetensors, or one of its tensors is unknown or lacks others.
        CheckpointError: its file is malformed or cannot be read.
    """
    if not folder.is_dir():
        raise AdapterError(f"{folder} is not a folder: give the one that peft's save_pretrained wrote")
    config = read_adapter_config(folder)
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        others = sorted(one.name for one in folder.glob("adapter*") if one.name != ADAPTER_CONFIG)
        found = f" and has {quoted(others[0])}" if others else ""
        raise AdapterError(
            f"{folder} has no {ADAPTER_WEIGHTS}{found}: load the adapter with peft and write it with save_pretrained"
        )
    try:
        entries = read_header(path)
        sha256, config_sha256 = file_sha256(path), hashlib.sha256((folder / ADAPTER_CONFIG).read_bytes()).hexdigest()
    except OSError as error:
        raise AdapterError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    tensors = Checkpoint({entry.name: (LocalFile(path), entry) for entry in entries})
    modules, wholes = _sorted(path, tensors)
    for module in modules:
        _check_complete(path, module, config)
    if not modules and not wholes:
        raise AdapterError(f"{path} has no tensors: the adapter was not saved whole, or on another rank; save it again")
    shown = "".join(c if c.isprintable() else "?" for c in folder.resolve().name)
    return Adapter(name or shown, path, config, tensors, tuple(modules), wholes, sha256, config_sha256)


def _sorted(path: Path, tensors: Checkpoint) -> tuple[list[LoraModule], dict[str, str]]:
    modules: dict[tuple[str, int], LoraModule] = {}
    wholes: dict[str, str] = {}
    for name in tensors.names:
        read = read_name(name)
        if read is None:
            raise unused(path, name)
        if 0 in tensors.info(name).shape:
            raise AdapterError(
                f"{path}: {quoted(name)} is empty, as DeepSpeed ZeRO 3 saves a part of a model: gather it first"
            )
        if read.part is Part.WHOLE:
            _add(path, wholes, read.ours, name)
        else:
            module = modules.setdefault((read.ours, read.depth), _module(read))
            _add(path, module.parts, read.part, name)
    return list(modules.values()), wholes


def _module(name: TensorName) -> LoraModule:
    return LoraModule(name.module, name.ours, name.depth)


def _add(path: Path, found: dict[Key, str], key: Key, name: str) -> None:
    if key in found:
        raise AdapterError(f"{path}: {quoted(found[key])} and {quoted(name)} are the same tensor: remove one")
    found[key] = name


def unused(path: Path, name: str) -> AdapterError:
    """The error of a tensor that changes nothing in the base."""
    reason = why_unused(name) or "changes no weight of the base: the adapter was trained on another model"
    return AdapterError(f"{path}: {quoted(name)} {reason}")


def _check_complete(path: Path, module: LoraModule, config: AdapterConfig) -> None:
    """Check that a module has two factors of one kind, and lengths if the adapter is of DoRA."""
    pairs = ({Part.A, Part.B}, {Part.EMBEDDING_A, Part.EMBEDDING_B})
    factors = module.parts.keys() - {Part.MAGNITUDE}
    if factors not in pairs:
        raise AdapterError(
            f"{path}: {quoted(module.shown)} lacks the other tensors of its module: the adapter was not saved whole"
        )
    if (Part.MAGNITUDE in module.parts) != config.is_dora:
        has = "has" if Part.MAGNITUDE in module.parts else "has no"
        raise AdapterError(
            f"{path}: {quoted(module.name)} {has} lora_magnitude_vector and use_dora is"
            f" {str(config.is_dora).lower()}: restore the {ADAPTER_CONFIG} that was saved with it"
        )
