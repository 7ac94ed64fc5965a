"""Finds a checkpoint: a local folder, or a repository of the Hugging Face hub, which it downloads.

huggingface_hub downloads into its cache only the files that an export reads. The small config.json comes first, so that
a model that cannot be exported is refused before its weights are downloaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from qwonnx.export.checkpoint.config import CONFIG_NAME, ModelConfig, load_config
from qwonnx.export.checkpoint.foreign_formats import ADAPTER_CONFIG, recognised_names, refuse_adapter
from qwonnx.export.errors import CheckpointError, ConfigError
from qwonnx.runtime.artifact.strict_json import quoted

# `*` also matches the separator of folders. Files in sub-folders (other formats of the same weights) are excluded by
# _IGNORED, but for the folder of chat templates.
_DOWNLOADED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer*", "merges.txt"]
_IGNORED = ["*/*.safetensors", "*/*.json", "*/tokenizer*", "*/merges.txt"]

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Location:
    """A found checkpoint: its folder, name in a manifest, commit (None for a local folder) and parsed config.json."""

    folder: Path
    name: str
    commit: str | None
    config: ModelConfig


def locate_checkpoint(name_or_path: str, revision: str | None) -> Location:
    """Find a checkpoint.

    config.json is read at once: if a checkpoint has several errors, that of config.json explains most.

    Raises:
        CheckpointError: there is no such folder or repository, or it cannot be downloaded.
        ConfigError: its model is not supported, or its config.json is malformed.
    """
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
        config = load_config(path)
        # A manifest's strings are printable; a folder's name may not be.
        return Location(path, "".join(c if c.isprintable() else "?" for c in path.resolve().name), None, config)
    if exists:
        known = recognised_names([path.name])
        raise CheckpointError(
            f"{path} is a file: give the checkpoint's folder, with --weights-file if it has several models"
            if known is None
            else f"{path}: {known}"
        )
    small = fetch_config(name_or_path, revision)
    commit = small.name  # the cache keeps a snapshot in a folder that is named by its commit
    config = load_config(small)
    with _hub_errors(name_or_path, commit):
        folder = snapshot_download(name_or_path, revision=commit, allow_patterns=_DOWNLOADED, ignore_patterns=_IGNORED)
    if not any(Path(folder).glob("*.safetensors")):
        _refuse_other_files(name_or_path, commit)
    return Location(Path(folder), name_or_path, commit, config)


def is_repository_name(name: str) -> bool:
    """Whether a name has the form of a hub repository's."""
    return _REPO_ID.fullmatch(name) is not None


def fetch_config(repository: str, revision: str | None) -> Path:
    """Download only the config.json of a hub repository, and that of an adapter.

    Returns:
        The folder of config.json; its name is the commit.

    Raises:
        CheckpointError: the name is malformed, or the repository does not exist or cannot be downloaded; or it has an
            adapter, or no config.json and files of another format.
    """
    if not _REPO_ID.fullmatch(repository):
        shown = repository if repository.isprintable() else quoted(repository)
        raise CheckpointError(f"{shown} does not exist: give a checkpoint's folder, or a hub repository (owner/name)")
    with _hub_errors(repository, revision):
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[CONFIG_NAME, ADAPTER_CONFIG]))
    has_config = (folder / CONFIG_NAME).is_file()
    if folder.is_dir():  # without any of these files, none is made
        refuse_adapter(folder, has_weights=has_config)
    if not has_config:
        _refuse_other_files(repository, folder.name)
        raise ConfigError(f"{repository} has no {CONFIG_NAME}: give a repository in Hugging Face layout")
    return folder


def _refuse_other_files(repository: str, commit: str) -> None:
    """Refuse a repository by the names of its files, which are not downloaded, if they are known.

    Raises:
        CheckpointError: they are, or the hub does not list them.
    """
    with _hub_errors(repository, commit):
        names = HfApi().list_repo_files(repository, revision=commit)
    known = None if ADAPTER_CONFIG in names else recognised_names(names)
    if known is not None:
        raise CheckpointError(f"{repository} has no model in safetensors, and {known}")


@contextmanager
def _hub_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Map the hub client's errors, which have many lines, to one line each."""
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is gated: accept its terms on the hub, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repository} is neither a local folder nor a repository of the hub that you may read:"
            " check the name, or log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repository} has no revision {revision!r}: name a branch, tag or commit") from error
    except HFValidationError as error:
        raise CheckpointError(f"{repository} is neither a local folder nor a repository's name: check it") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repository} is not a local folder, and the hub cannot be reached to download it:"
            " check the connection, or give a folder"
        ) from error
    except Exception as error:  # errors of the HTTP client; hub versions use different clients
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(f"{repository} cannot be downloaded from the hub ({reason}): try again") from error
