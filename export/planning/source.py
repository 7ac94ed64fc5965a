"""The source of a plan: a config.json, a checkpoint's folder or URL, or the config.json of a hub repository.

The hub's client is imported only for a repository; torch is never imported. Of a folder at a URL, text files are
fetched, and for an exact plan the headers of its tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwonnx.export.checkpoint.chosen_files import choose_files
from qwonnx.export.checkpoint.config import ModelConfig, load_config, load_config_file
from qwonnx.export.checkpoint.foreign_formats import recognised_names, refuse_adapter, refuse_side_file
from qwonnx.export.checkpoint.gguf.files import first_part, gguf_in, is_gguf, refuse_elsewhere
from qwonnx.export.checkpoint.location import repository_of
from qwonnx.export.checkpoint.remote.addresses import is_url, parse_url
from qwonnx.export.checkpoint.remote.remote_folder import RemoteFolder, open_url
from qwonnx.export.errors import CheckpointError
from qwonnx.export.planning.artifact_size import CopiedFiles


@dataclass(frozen=True, slots=True)
class PlanSource:
    """A model's configuration, and known facts of its checkpoint.

    name is that of the folder or the repository. folder is the checkpoint's, None if there is only a config.json or no
    tokenizer; remote has the tensors if they are not in the folder. copied are the files that an export would copy,
    estimated without a folder. weights_file is the user's choice of tensors in the folder, see choose_files.
    """

    name: str
    commit: str | None
    config: ModelConfig
    folder: Path | None
    copied: CopiedFiles
    weights_file: str | None = None
    remote: RemoteFolder | None = None


def open_source(
    name_or_path: str, revision: str | None = None, weights_file: str | None = None, *, offline: bool = False
) -> PlanSource:
    """Find a model's configuration; offline: use of the hub only what its cache has.

    Raises:
        CheckpointError: there is no such file, folder or repository, or it cannot be downloaded; a folder has an
            adapter, or weights that config.json does not describe.
        ConfigError: the model is not supported, or its config.json is malformed.
    """
    if is_url(name_or_path):
        return _at_url(name_or_path, revision, weights_file)
    path = Path(name_or_path)
    if path.exists() and revision is not None:
        raise CheckpointError(f"{path} is local and has no revision {revision!r}: leave --revision out")
    if is_gguf(path):
        return _of_gguf(first_part(path))
    if path.is_file() and path.suffix.lower() != ".json":
        known = recognised_names([path.name])
        raise CheckpointError(f"{path}: {known}" if known else f"{path} is not a config.json: give that, or its folder")
    if path.is_file():
        return _without_folder(path.resolve().parent.name, None, load_config_file(path))
    if path.is_dir() and (gguf := gguf_in(path, weights_file)) is not None:
        return _of_gguf(gguf)
    if path.is_dir():
        return _in_folder(path.resolve().name, path, weights_file)
    repository = repository_of(name_or_path, revision)

    from qwonnx.export.checkpoint.remote.hub_download import download_config

    found = download_config(repository, offline=offline)
    return _without_folder(repository.name, found.commit, load_config(found.folder))


def _at_url(url: str, revision: str | None, weights_file: str | None) -> PlanSource:
    if revision is not None:
        raise CheckpointError(f"a URL has no revision {revision!r}: leave --revision out")
    address = parse_url(url)
    remote = open_url(address, weights_file)
    with remote.naming():
        refuse_elsewhere(remote.folder, weights_file)
        return _in_folder(address.folder_name, remote.folder, weights_file, remote)


def _in_folder(name: str, folder: Path, weights_file: str | None, remote: RemoteFolder | None = None) -> PlanSource:
    config = load_config(folder)
    refuse_adapter(folder, has_weights=any((*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"))))
    if config.quantization is None:
        refuse_side_file(folder)
    if weights_file is not None:
        choose_files(folder, weights_file)
    copied = CopiedFiles.of_folder(folder)
    if copied is None:
        return _without_folder(name, None, config)
    return PlanSource(name, None, config, folder, copied, weights_file, remote)


def _of_gguf(path: Path) -> PlanSource:
    """The source of a model in GGUF, from the path of its first file."""
    config, copied = load_config(path), CopiedFiles.of_folder(path)
    if copied is None:
        return _without_folder(path.name, None, config)
    return PlanSource(path.name, None, config, path, copied)


def _without_folder(name: str, commit: str | None, config: ModelConfig) -> PlanSource:
    return PlanSource(name, commit, config, None, CopiedFiles.estimated(config))
