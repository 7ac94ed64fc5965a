"""A checkpoint and the adapters that an export merges into it, found and opened.

The adapters are given beside their base, or an adapter is given in the place of a checkpoint and names its base.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from qwonnx.export.adapters.adapted_weights import AdaptedWeights
from qwonnx.export.adapters.adapter import Adapter, open_adapter
from qwonnx.export.adapters.adapter_config import read_adapter_config
from qwonnx.export.adapters.adapter_location import AdapterLocation, locate_adapter
from qwonnx.export.checkpoint.formats.stored_weights import StoredWeights
from qwonnx.export.checkpoint.location import BY_DEFAULT, Access
from qwonnx.export.checkpoint.remote.addresses import is_repository_name
from qwonnx.export.checkpoint.resolved_checkpoint import ResolvedCheckpoint, resolve_checkpoint
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.errors import AdapterError
from qwonnx.runtime.adapters.adapter_config import ADAPTER_CONFIG
from qwonnx.runtime.artifact.manifest import AdapterFacts
from qwonnx.runtime.artifact.strict_json import quoted

# Files that say how a model is prompted. An adapter's trainer may have written others than the base has.
_TEXT_FILES = ("tokenizer.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class AdaptedCheckpoint:
    """A checkpoint as adapters change it; without any, as it is.

    resolved.config may differ from config.json: an adapter can part a head from the embedding that it was tied to.
    """

    resolved: ResolvedCheckpoint
    adapters: tuple[Adapter, ...]
    weights: AdaptedWeights | None
    notes: tuple[str, ...]  # for display
    locations: tuple[AdapterLocation, ...] = ()  # of the adapters

    @property
    def facts(self) -> tuple[AdapterFacts, ...]:
        """The adapters' entries in a manifest."""
        return () if self.weights is None else self.weights.edits.facts

    def requantised(self, *, allowed: bool) -> tuple[str, ...]:
        """A note about weights that lose the base's codes, which are quantised again; none if there are none.

        Raises:
            AdapterError: there are some, and that is not allowed.
        """
        names = () if self.weights is None else self.weights.lost_codes
        if not names:
            return ()
        shown = ", ".join(map(quoted, names[:2])) + (", ..." if len(names) > 2 else "")
        if not allowed:
            raise AdapterError(
                f"adapters change {len(names)} weights that the checkpoint has as codes ({shown}): quantise these again"
                " with --requantize, at some loss, or merge into the checkpoint that is not quantised"
            )
        return (f"requantised: {len(names)} weights that adapters change and the checkpoint has as codes ({shown})",)

    def source(self) -> WeightSource:
        """A new source of the weights."""
        return WeightSource(self.resolved.tensors, self.resolved.config, self.weights)


@dataclass(frozen=True, slots=True)
class NamedBase:
    """A base and adapters by name."""

    base: str
    revision: str | None
    adapters: tuple[str | os.PathLike[str], ...]


def resolve_adapted(
    name_or_path: str,
    revision: str | None,
    weights_file: str | None = None,
    adapters: Sequence[str | os.PathLike[str]] = (),
    access: Access = BY_DEFAULT,
) -> AdaptedCheckpoint:
    """Find and open a checkpoint and its adapters.

    Args:
        name_or_path: a checkpoint's folder, a hub repository, a URL, or a folder with an adapter that names its base.
        revision: of the checkpoint, if it is a hub repository.
        weights_file: see choose_files.
        adapters: folders, hub repositories or URLs, in the order in which they are merged.
        access: see there.

    Raises:
        AdapterError: an adapter is not supported, does not fit the checkpoint, or does not name a base that is found.
        CheckpointError: the checkpoint does not exist, cannot be opened, or is not supported.
    """
    named = name_base(name_or_path, revision, tuple(adapters))
    resolved = resolve_checkpoint(named.base, named.revision, weights_file, access)
    locations = tuple(locate_adapter(adapter, access) for adapter in named.adapters)
    opened = tuple(_opened(location) for location in locations)
    if not opened:
        return AdaptedCheckpoint(resolved, (), None, ())
    config = resolved.config
    weights = AdaptedWeights(StoredWeights(resolved.tensors, config.quantization), config, opened)
    notes = [_merged(facts, adapter) for facts, adapter in zip(weights.edits.facts, opened, strict=True)]
    for adapter in opened:
        notes += _differences(adapter, resolved)
    if weights.edits.parts_head:
        config = dataclasses.replace(config, tie_word_embeddings=False)
        notes.append(
            "an adapter trains only one of the head and the embedding, which the base ties: the artifact has both, as"
            " in the training"
        )
    changed = dataclasses.replace(resolved, config=config)
    return AdaptedCheckpoint(changed, opened, weights, tuple(notes), locations)


def _opened(location: AdapterLocation) -> Adapter:
    with nullcontext() if location.copied is None else location.copied.naming():
        return open_adapter(location.folder, location.name)


def is_adapter(name_or_path: str) -> bool:
    """Whether a name is a folder with an adapter and without weights of a model."""
    folder = Path(name_or_path)
    try:
        if not (folder / ADAPTER_CONFIG).is_file():
            return False
        return all(path.name.lower().startswith("adapter") for path in folder.glob("*.safetensors"))
    except OSError:  # the name is too long, or a folder may not be searched: locating it says so
        return False


def name_base(name_or_path: str, revision: str | None, adapters: tuple[str | os.PathLike[str], ...]) -> NamedBase:
    """What a user named: a base and adapters, or an adapter's folder that names its base and comes before the others.

    Raises:
        AdapterError: the adapter does not name a base that is found.
    """
    if not is_adapter(name_or_path):
        return NamedBase(name_or_path, revision, adapters)
    folder = Path(name_or_path)
    config = read_adapter_config(folder)
    give = f"qwonnx export BASE OUT --adapter {folder}"
    if config.base is None:
        raise AdapterError(f"{config.where} does not name its base: give it, {give}")
    if not os.path.isdir(config.base) and not is_repository_name(config.base):
        raise AdapterError(f"{config.where} names the base {quoted(config.base)}, which is not here: give it, {give}")
    is_local = os.path.isdir(config.base)
    return NamedBase(config.base, revision or (None if is_local else config.base_revision), (folder, *adapters))


def _merged(facts: AdapterFacts, adapter: Adapter) -> str:
    kind = "DoRA" if adapter.config.is_dora else "LoRA"
    whole = f", {len(adapter.wholes)} whole tensors" if adapter.wholes else ""
    return (
        f"adapter {facts.name}: {kind} of {len(adapter.modules)} modules, rank {facts.rank}, scaling"
        f" {facts.scaling}{whole}"
    )


def _differences(adapter: Adapter, resolved: ResolvedCheckpoint) -> list[str]:
    """What may be wrong with an adapter and a base that fit each other."""
    notes = []
    base, given = adapter.config.base, resolved.source.checkpoint
    if base is not None and _last_part(base) != _last_part(given):
        notes.append(f"adapter {adapter.name}: it names the base {quoted(base)}, and {quoted(given)} is exported")
    for name in _TEXT_FILES:
        own, others = adapter.path.parent / name, resolved.folder / name
        if own.is_file() and others.is_file() and own.read_bytes() != others.read_bytes():
            notes.append(
                f"adapter {adapter.name}: its {name} differs from the base's, which is used: copy it over the base's if"
                " the adapter was trained with it"
            )
    return notes


def _last_part(name: str) -> str:
    return Path(name).name.lower()
