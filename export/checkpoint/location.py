"""Finds a checkpoint: a local folder, a repository of the Hugging Face hub, or a folder at a URL.

A repository is downloaded into the hub's cache; a check only reads its headers. A folder at a URL is read in ranges.
The small config.json comes first, so that a model that cannot be exported is refused before its weights are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwonnx.export.checkpoint.config import ModelConfig, load_config
from qwonnx.export.checkpoint.foreign_formats import recognised_names
from qwonnx.export.checkpoint.gguf.files import first_part, gguf_in, is_gguf, refuse_elsewhere
from qwonnx.export.checkpoint.remote.addresses import Repository, is_url, parse_repository, parse_url
from qwonnx.export.checkpoint.remote.remote_folder import RemoteFolder, open_url
from qwonnx.export.errors import CheckpointError
from qwonnx.runtime.artifact.strict_json import quoted


@dataclass(frozen=True, slots=True)
class Access:
    """How a checkpoint that is not on this machine is read.

    offline: use of the hub only what its cache has.
    headers_only: weights are not read, so a hub repository is not downloaded.
    on_bytes: called with bytes that are downloaded and bytes of all files.
    """

    offline: bool = False
    headers_only: bool = False
    on_bytes: Callable[[int, int], None] | None = None


BY_DEFAULT = Access()


@dataclass(frozen=True, slots=True)
class Location:
    """A found checkpoint: its folder or first GGUF file, name in a manifest, commit (None without one), parsed config.

    remote has the tensors if they are not in the folder.
    """

    folder: Path
    name: str
    commit: str | None
    config: ModelConfig
    remote: RemoteFolder | None = None


def locate_checkpoint(
    name_or_path: str, revision: str | None, weights_file: str | None = None, access: Access = BY_DEFAULT
) -> Location:
    """Find a checkpoint.

    A model in GGUF is given by one of its files, or by its folder if no other weights are there.

    Args:
        name_or_path: a folder, a GGUF file, a hub repository, or a URL.
        revision: branch, tag or commit of a hub repository.
        weights_file: which of several models in a folder, see choose_files.
        access: see there.

    config.json is read at once: if a checkpoint has several errors, that of config.json explains most.

    Raises:
        CheckpointError: there is no such folder or repository, or it cannot be downloaded or read.
        ConfigError: its model is not supported, or its config.json is malformed.
    """
    if is_url(name_or_path):
        return _at_url(name_or_path, revision, weights_file)
    path = Path(name_or_path)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # the name is too long, or a folder may not be searched
        raise CheckpointError(f"{quoted(name_or_path)} cannot be read ({error.strerror}): give a folder") from error
    if is_folder:
        if not os.access(path, os.R_OK | os.X_OK):
            raise CheckpointError(f"{path} may not be read: check its permissions")
        if revision is not None:
            raise CheckpointError(f"{path} is a local folder, which has no revision {revision!r}: leave --revision out")
        path = gguf_in(path, weights_file) or path
        return Location(path, _printable(path.resolve().name), None, load_config(path))
    if exists and is_gguf(path):
        if revision is not None:
            raise CheckpointError(f"{path} is a local file, which has no revision {revision!r}: leave --revision out")
        path = first_part(path)
        return Location(path, _printable(path.resolve().name), None, load_config(path))
    if exists:
        known = recognised_names([path.name])
        raise CheckpointError(
            f"{path} is a file: give the checkpoint's folder, with --weights-file if it has several models"
            if known is None
            else f"{path}: {known}"
        )
    return _in_hub(repository_of(name_or_path, revision), weights_file, access)


def repository_of(name: str, revision: str | None) -> Repository:
    """A hub repository by its name.

    Raises:
        CheckpointError: the name has another form.
    """
    found = parse_repository(name, revision)
    if found is None:
        shown = name if name.isprintable() else quoted(name)
        raise CheckpointError(
            f"{shown} does not exist: give a checkpoint's folder, a hub repository (owner/name), or a URL"
        )
    return found


def _in_hub(repository: Repository, weights_file: str | None, access: Access) -> Location:
    from qwonnx.export.checkpoint.remote.hub_download import download_checkpoint

    if access.headers_only and not access.offline:
        from qwonnx.export.checkpoint.remote.hub_client import HubUnreachableError, commit_of
        from qwonnx.export.checkpoint.remote.hub_store import HubStore

        try:
            commit = commit_of(repository)
            remote = RemoteFolder(HubStore(repository.name, commit), repository.name.rpartition("/")[2])
        except HubUnreachableError:
            pass  # the cache may have it
        else:
            with remote.naming():
                refuse_elsewhere(remote.folder, weights_file)
                return Location(remote.folder, repository.name, commit, load_config(remote.folder), remote)
    found = download_checkpoint(repository, weights_file, offline=access.offline, on_bytes=access.on_bytes)
    return Location(found.folder, repository.name, found.commit, load_config(found.folder))


def _at_url(url: str, revision: str | None, weights_file: str | None) -> Location:
    address = parse_url(url)
    if address.scheme in ("file", "local"):
        raise CheckpointError("a file:// URL is a local folder: give its path")
    if revision is not None:
        raise CheckpointError(f"{address.url} has no revision {revision!r}: leave --revision out")
    remote = open_url(address, weights_file)
    with remote.naming():
        refuse_elsewhere(remote.folder, weights_file)
        return Location(remote.folder, address.folder_name, None, load_config(remote.folder), remote)


def _printable(name: str) -> str:
    """A manifest's strings are printable; a folder's name may not be."""
    return "".join(c if c.isprintable() else "?" for c in name)
