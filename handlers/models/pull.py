"""A checkpoint becomes a model of the store: the recipe is chosen, and the export writes into the model's folder.

The export's own journal makes it go on after an interruption. The artifact takes its name when it is complete, so a
half export is never found.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwonnx.export.checkpoint.remote.addresses import Repository, is_url, parse_repository, parse_url
from qwonnx.export.errors import CheckpointError, ExportError, OtherExportError
from qwonnx.export.planning.source import open_source
from qwonnx.export.planning.stored_model import NamedRecipe, named_recipe
from qwonnx.export.quantization.recipe import SHIPPED, Preset, Recipe
from qwonnx.export.targets.register import DEFAULT_TARGET, choose_target
from qwonnx.export.weight_files.memory_budget import DEFAULT_MEMORY_BYTES
from qwonnx.export.weight_files.unfinished import KEPT
from qwonnx.handlers.models.errors import ModelStoreError
from qwonnx.handlers.models.fitting import FittingRecipe, fitting_recipe, this_machine
from qwonnx.handlers.models.layout import ARTIFACT
from qwonnx.handlers.models.names import ModelName, name_from
from qwonnx.handlers.models.stored_models import PulledModel, Record, StoredModels

if TYPE_CHECKING:  # imports torch
    from qwonnx.export.weight_files.progress import ExportProgress


@dataclass(frozen=True, slots=True)
class Wish:
    """What to pull; the arguments of ModelStore.add."""

    source: str
    recipe: str | None = None
    revision: str | None = None
    target: str | None = None
    name: str | None = None
    offline: bool = False
    again: bool = False
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Source:
    """A source as a record has it: shown is without credentials, revision as asked for."""

    shown: str
    short: str
    owner: str | None
    revision: str | None


def pull(
    store: StoredModels,
    wish: Wish,
    *,
    on_progress: Callable[[ExportProgress], None] | None = None,
    on_choice: Callable[[Record], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> PulledModel:
    """See ModelStore.add."""
    source = _source(wish)
    target = wish.target or DEFAULT_TARGET
    choose_target(target)
    name = _name(store, wish, source)
    if wish.recipe is None and not wish.again and (there := _complete(store, name, source, target)) is not None:
        _note_that_it_is_old(there, source, wish, on_note)
        return there
    fitting = _recipe(store, wish, source, target)
    label = fitting.label if target == DEFAULT_TARGET else f"{fitting.label}-{target}"
    whole = ModelName(name, source.revision, label)
    if not wish.again and (there := store.model(whole)) is not None and there.is_complete:
        _note_that_it_is_old(there, source, wish, on_note)
        return there
    record = Record(name, source.shown, source.revision, None, label, target, fitting.why, time.time())
    if on_choice is not None:
        on_choice(record)
    try:
        return _export(store, whole, record, fitting, wish, on_progress, on_note)
    except ExportError as error:
        text = str(error)
        if not text.endswith(KEPT):
            raise
        raise type(error)(f"{text.removesuffix(KEPT)}; what is written is kept: pull again to go on") from error
    except OSError as error:
        raise ModelStoreError(
            f"cannot write {store.folder} ({error.strerror or error}): free some space, or set QWONNX_CACHE to another"
            " folder"
        ) from error


def _export(
    store: StoredModels,
    whole: ModelName,
    record: Record,
    fitting: FittingRecipe,
    wish: Wish,
    on_progress: Callable[[ExportProgress], None] | None,
    on_note: Callable[[str], None] | None,
) -> PulledModel:
    from qwonnx.export.pipeline import ExportOptions, export_checkpoint  # imports torch

    with store.exclusive(whole) as folder:
        if (there := store.model(whole)) is None:
            store.write_record(whole, record)
        artifact = folder / ARTIFACT
        options = ExportOptions(
            target=record.target,
            recipe=fitting.recipe.recipe,
            kv=fitting.kv,
            overwrite=there is not None and there.is_complete,
            resume=True,
            revision=wish.revision,
            offline=wish.offline,
            memory_bytes=wish.memory_bytes or DEFAULT_MEMORY_BYTES,
        )
        try:
            manifest = export_checkpoint(wish.source, artifact, options, on_progress=on_progress, on_note=on_note)
        except OtherExportError:  # the source has changed since
            options = replace(options, resume=False)
            manifest = export_checkpoint(wish.source, artifact, options, on_progress=on_progress, on_note=on_note)
        store.write_record(whole, replace(record, commit=manifest.source.revision, pulled=time.time()))
    found = store.model(whole)
    assert found is not None, "the record was written"
    return found


def _source(wish: Wish) -> _Source:
    """
    Raises:
        CheckpointError: the URL is malformed, or the name and the option give different revisions.
    """
    if is_url(wish.source):
        address = parse_url(wish.source)
        return _Source(address.url, address.folder_name, None, wish.revision)
    path = Path(wish.source)
    if path.exists():
        absolute = Path(os.path.abspath(path))  # a link's own name is the one that its maker chose
        return _Source(str(absolute), absolute.stem if absolute.is_file() else absolute.name, None, wish.revision)
    repository = parse_repository(wish.source, wish.revision)
    if repository is None:  # the exporter says what is wrong with it
        return _Source(wish.source, path.name or "model", None, wish.revision)
    owner, _, short = repository.name.partition("/")
    return _Source(repository.name, short, owner, repository.revision)


def _name(store: StoredModels, wish: Wish, source: _Source) -> str:
    """The model's name: as given, or from the source, with its owner's if another source has the short one.

    Raises:
        ModelStoreError: the name is malformed, or belongs to another source.
    """
    owners = {model.name.name: model.record.source for model in store.models()}
    if wish.name is not None:
        candidates = [wish.name]
    else:
        owned = [f"{source.owner}-{source.short}"] if source.owner is not None else []
        candidates = [name_from(each) for each in (source.short, *owned)]
        candidates = [name for name, owner in owners.items() if owner == source.shown] or candidates
    for name in candidates:
        if owners.get(name, source.shown) == source.shown:
            return name
    taken = candidates[0]
    raise ModelStoreError(f"the name {taken} belongs to {owners[taken]}: give another one with --name")


def _complete(store: StoredModels, name: str, source: _Source, target: str) -> PulledModel | None:
    """A model that is there already, in whichever recipe."""
    for model in store.models():
        record = model.record
        same = record.name == name and record.revision == source.revision and record.target == target
        if same and record.source == source.shown and model.is_complete:
            return model
    return None


def _note_that_it_is_old(
    model: PulledModel, source: _Source, wish: Wish, on_note: Callable[[str], None] | None
) -> None:
    """Say so if the repository has another commit by now; nothing if the hub does not tell."""
    if on_note is None or wish.offline or source.owner is None:
        return
    from qwonnx.export.checkpoint.remote.hub_client import commit_of

    try:
        commit = commit_of(Repository(source.shown, source.revision))
    except CheckpointError:
        return
    if commit != model.record.commit:
        on_note(f"{source.shown} has a newer commit, {commit[:8]}, than the model, {(model.record.commit or '-')[:8]}")


def _download_bytes(store: StoredModels, wish: Wish, source: _Source) -> int:
    """What comes from the hub onto the store's disk before the export."""
    if source.owner is None or wish.offline:
        return 0
    from qwonnx.export.checkpoint.remote.hub_download import bytes_to_download

    return bytes_to_download(Repository(source.shown, source.revision), store.folder)


def _recipe(store: StoredModels, wish: Wish, source: _Source, target: str) -> FittingRecipe:
    if wish.recipe is None:
        opened = open_source(wish.source, wish.revision, offline=wish.offline)
        machine = this_machine(store.folder)
        # What an interrupted export wrote is of use to this one, which must come to the same choice.
        kept = (model for model in store.models() if model.record.source == source.shown and not model.is_complete)
        download = _download_bytes(store, wish, source)
        room = machine.disk + sum(model.num_bytes for model in kept) - download
        machine = replace(machine, disk=room, download=download)
        return fitting_recipe(opened, machine, target)
    if wish.recipe in (*Preset, *SHIPPED):
        named = named_recipe(wish.recipe)
    else:
        path = Path(wish.recipe)
        named = NamedRecipe(name_from(path.stem), Recipe.choose(wish.recipe, None, None), "")
    return FittingRecipe(named, None, named.name, f"{named.name} was asked for")
