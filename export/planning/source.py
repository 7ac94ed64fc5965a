"""The source of a plan: a config.json, a checkpoint's folder, or the config.json of a hub repository.

The hub's client is imported only for a repository; torch is never imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwonnx.export.checkpoint.chosen_files import choose_files
from qwonnx.export.checkpoint.config import ModelConfig, load_config, load_config_file
from qwonnx.export.checkpoint.foreign_formats import recognised_names, refuse_adapter, refuse_side_file
from qwonnx.export.errors import CheckpointError
from qwonnx.export.planning.artifact_size import CopiedFiles


@dataclass(frozen=True, slots=True)
class PlanSource:
    """A model's configuration, and known facts of its checkpoint.

    name is that of the folder or the repository. folder is the checkpoint's, None if it is not local or has no
    tokenizer. copied are the files that an export would copy, estimated without a folder. weights_file is the user's
    choice of tensors in the folder, see choose_files.
    """

    name: str
    commit: str | None
    config: ModelConfig
    folder: Path | None
    copied: CopiedFiles
    weights_file: str | None = None


def open_source(name_or_path: str, revision: str | None = None, weights_file: str | None = None) -> PlanSource:
    """Find a model's configuration.

    Raises:
        CheckpointError: there is no such file, folder or repository, or it cannot be downloaded; a folder has an
            adapter, or weights that config.json does not describe.
        ConfigError: the model is not supported, or its config.json is malformed.
    """
    path = Path(name_or_path)
    if path.exists() and revision is not None:
        raise CheckpointError(f"{path} is local and has no revision {revision!r}: leave --revision out")
    if path.is_file() and path.suffix.lower() != ".json":
        known = recognised_names([path.name])
        raise CheckpointError(f"{path}: {known}" if known else f"{path} is not a config.json: give that, or its folder")
    if path.is_file():
        return _without_folder(path.resolve().parent.name, None, load_config_file(path))
    if path.is_dir():
        config = load_config(path)
        refuse_adapter(path, has_weights=any(path.glob("*.safetensors")))
        if config.quantization is None:
            refuse_side_file(path)
        if weights_file is not None:
            choose_files(path, weights_file)
        copied = CopiedFiles.of_folder(path)
        if copied is None:
            return _without_folder(path.resolve().name, None, config)
        return PlanSource(path.resolve().name, None, config, path, copied, weights_file)

    from qwonnx.export.checkpoint.location import fetch_config

    fetched = fetch_config(name_or_path, revision)
    return _without_folder(name_or_path, fetched.name, load_config(fetched))


def _without_folder(name: str, commit: str | None, config: ModelConfig) -> PlanSource:
    return PlanSource(name, commit, config, None, CopiedFiles.estimated(config))
