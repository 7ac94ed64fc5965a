"""A path or a name becomes an engine: settings from arguments and variables, checkpoints exported into the cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from msgspec import Struct

from qwonnx.handlers.engine_start import open_engine
from qwonnx.handlers.library.progress import ProgressBar
from qwonnx.handlers.models.artifact_path import is_path
from qwonnx.handlers.models.errors import ModelStoreError
from qwonnx.handlers.models.stored_models import StoredModels
from qwonnx.runtime.artifact.manifest import MANIFEST_NAME
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.install import how_to_install
from qwonnx.runtime.quantities import bytes_text
from qwonnx.runtime.settings import RuntimeSettings, read_environment

logger = logging.getLogger(__name__)

Place = str | os.PathLike[str]
DEFAULT_ADAPTER = "adapter"


class Opened(Struct, frozen=True):
    """A model that answers.

    engine: started.
    adapter: the name of the adapter that answers unless another one is asked for; empty: the model itself.
    """

    engine: Engine
    adapter: str


def opened(
    model: Place,
    *,
    device: str | None,
    adapter: Place | Mapping[str, Place] | None,
    kernels: str | None,
    progress: bool | None,
    settings: Mapping[str, Any],
) -> Opened:
    """Open a model and start its engine; see AsyncLLM.

    Raises:
        SettingsError: a setting is unknown or out of range, or there is no such model.
        ArtifactError: the artifact cannot be opened.
        ExportError: the checkpoint cannot be exported.
        AdapterError: the adapter cannot be used.
        SessionError: ONNX Runtime cannot load the graph.
    """
    chosen = _settings({"device": device, "kernels": kernels, **settings})
    if adapter is not None:
        places = adapter if isinstance(adapter, Mapping) else {DEFAULT_ADAPTER: adapter}
        chosen = replace(chosen, adapters=tuple(f"{name}={os.fspath(place)}" for name, place in places.items()))
    engine = open_engine(artifact_of(model, progress), chosen)
    try:
        engine.start()
        engine.warm_up()
    except BaseException:
        engine.close()
        raise
    answers = adapter is not None and not isinstance(adapter, Mapping)
    return Opened(engine, DEFAULT_ADAPTER if answers else "")


def artifact_of(model: Place, progress: bool | None) -> Path:
    """The folder of an artifact.

    Args:
        model: the folder; a checkpoint's folder or GGUF file, a hub repository or a URL; or the name of a pulled model.
            A checkpoint is exported into the cache, or found there.
        progress: see ProgressBar.

    Raises:
        ModelStoreError: there is no such model, or the cache cannot be written.
        ExportError: the checkpoint cannot be exported.
        SettingsError: the exporter is not installed.
    """
    given = os.fspath(model)
    if not isinstance(model, str) or is_path(given):
        path = Path(given).expanduser()
        if (path / MANIFEST_NAME).is_file() or not path.exists():
            return path  # the reader of artifacts says what is wrong with it
        return _exported(str(path), progress)
    try:
        return StoredModels().resolve(given)
    except ModelStoreError:
        if "/" not in given:
            raise
    return _exported(given, progress)


def _exported(source: str, progress: bool | None) -> Path:
    """The artifact of a checkpoint in the cache; one of this machine that has changed since is exported again."""
    from qwonnx.handlers.models.store import ModelStore

    store = ModelStore()
    with ProgressBar(progress, is_long=True) as bar:

        def show(report: Any) -> None:  # an ExportProgress: the exporter may not be installed
            done, total = report.done_bytes, report.total_bytes
            counted = f" {bytes_text(done)} of {bytes_text(total)}" if total and report.stage != "calibrate" else ""
            bar.show(f"exporting {source}: {report.stage}{counted}", done, total)

        try:
            found = store.add(source, on_progress=show, on_note=logger.info)
            if _newest(Path(source)) > found.record.pulled:
                found = store.add(source, again=True, on_progress=show, on_note=logger.info)
        except ModuleNotFoundError as error:
            message = f"{source} is a checkpoint, and {error.name} to export it is not installed"
            raise SettingsError(f"{message}: {how_to_install('export')}") from error
    return found.artifact


def _newest(source: Path) -> float:
    """When a checkpoint of this machine was last changed, in seconds since 1970; 0 for others."""
    if not source.exists():
        return 0.0
    files = source.iterdir() if source.is_dir() else (source,)
    return max((path.stat().st_mtime for path in files if path.is_file()), default=0.0)


def _settings(given: Mapping[str, Any]) -> RuntimeSettings:
    """Settings: arguments override QWONNX_* variables, and these override defaults.

    Raises:
        SettingsError: a name is unknown, or a value is malformed or out of range.
    """
    known = {each.name: each for each in fields(RuntimeSettings)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            likely = get_close_matches(name, known, n=1)
            remedy = f"did you mean {likely[0]}?" if likely else "docs/configuration.md lists all"
            raise SettingsError(f"there is no setting {name!r}: {remedy}")
        if value is None:
            continue
        is_text = isinstance(known[name].default, str) or known[name].metadata.get("secret")
        if isinstance(value, str) and not is_text:  # "8GB", as a variable has it
            value = getattr(read_environment(RuntimeSettings, {f"QWONNX_{name.upper()}": value}), name)
        values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return replace(RuntimeSettings.from_environment(), **values)
    except TypeError as error:
        raise SettingsError(f"a setting is not of its kind ({error}): docs/configuration.md lists all") from error
