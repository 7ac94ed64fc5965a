"""Finds an adapter: a local folder, a repository of the hub, or a folder at a URL.

An adapter is small and its hash is a part of its identity, so it is copied whole: into the hub's cache, or into a
temporary folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qwonnx.export.checkpoint.location import Access
from qwonnx.export.checkpoint.remote.addresses import is_url, parse_repository, parse_url
from qwonnx.export.checkpoint.remote.remote_folder import RemoteFolder, open_url
from qwonnx.runtime.adapters.adapter_config import ADAPTER_WEIGHTS


@dataclass(frozen=True, slots=True)
class AdapterLocation:
    """A found adapter: its folder, and its name if that is not the folder's. copied keeps a temporary folder."""

    folder: Path
    name: str | None = None
    copied: RemoteFolder | None = None


def locate_adapter(name_or_path: str | os.PathLike[str], access: Access) -> AdapterLocation:
    """Find an adapter; a name that is none of the three is a folder that does not exist.

    Raises:
        CheckpointError: it cannot be downloaded or read.
    """
    name = os.fspath(name_or_path)
    if is_url(name):
        address = parse_url(name)
        remote = open_url(address)
        remote.copy_to(remote.folder, [ADAPTER_WEIGHTS])
        return AdapterLocation(remote.folder, address.folder_name, remote)
    repository = None if os.path.lexists(name) else parse_repository(name, None)
    if repository is None:
        return AdapterLocation(Path(name))
    from qwonnx.export.checkpoint.remote.hub_download import download_adapter

    found = download_adapter(repository, offline=access.offline, on_bytes=access.on_bytes)
    return AdapterLocation(found.folder, repository.name)
