"""The client of the Hugging Face hub: a repository's commit and files, and one line for each of its errors.

The token is that of huggingface_hub: HF_TOKEN, the file that HF_TOKEN_PATH names, or that of `hf auth login`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from qwonnx.export.checkpoint.remote.addresses import Repository, reason_of
from qwonnx.export.checkpoint.remote.retries import TransientError, with_retries
from qwonnx.export.checkpoint.remote.store import StoredObject
from qwonnx.export.errors import AccessError, CheckpointError

Result = TypeVar("Result")

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
REMEDY = f"accept its terms on the hub, then {LOG_IN}"  # where a file may not be read
_TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_SHA256 = re.compile(r"[0-9a-f]{64}")  # it names a file of the cache
_MAX_FILES = 20_000


class HubUnreachableError(AccessError):
    """There is no connection to the hub, or offline mode is on: only its cache can be used."""


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    return constants.is_offline_mode()


def commit_of(repository: Repository) -> str:
    """The commit of a revision; raises as hub_errors does."""

    def ask() -> str:
        return HfApi().repo_info(repository.name, revision=repository.revision).sha or ""

    return tried(repository.name, repository.revision, ask)


def list_files(name: str, commit: str) -> dict[str, StoredObject]:
    """The files of a repository; raises as hub_errors does."""

    def ask() -> dict[str, StoredObject]:
        found: dict[str, StoredObject] = {}
        for entry in HfApi().list_repo_tree(name, revision=commit, recursive=True):
            if len(found) > _MAX_FILES:
                raise AccessError(f"{name} has more than {_MAX_FILES} files: it is not a model's repository")
            if isinstance(entry, RepoFile) and 0 <= entry.size < 1 << 62:
                sha256 = entry.lfs.sha256 if entry.lfs is not None and _SHA256.fullmatch(entry.lfs.sha256) else None
                found[entry.path] = StoredObject(entry.path, entry.size, entry.blob_id, sha256)
        return found

    return tried(name, commit, ask)


def tried(name: str, revision: str | None, ask: Callable[[], Result]) -> Result:
    """The answer of the hub, asked again where that may help.

    Raises:
        CheckpointError: see hub_errors.
    """

    def once() -> Result:
        try:
            return ask()
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            if status not in _TRY_AGAIN:
                raise
            asked = error.response.headers.get("Retry-After", "")
            raise TransientError(
                "it answers 429: too many requests" if status == 429 else f"it answers {status}",
                float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 6 else None,
            ) from error

    with hub_errors(name, revision):
        return with_retries(once)


@contextmanager
def hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Map the hub client's errors, which have many lines, to one line each.

    Raises:
        HubUnreachableError: there is no connection.
        CheckpointError: all others.
    """
    try:
        yield
    except CheckpointError:
        raise
    except GatedRepoError as error:
        raise AccessError(f"{name} is gated: accept its terms on the hub, then {LOG_IN}") from error
    except RepositoryNotFoundError as error:
        raise AccessError(
            f"{name} is neither a local folder nor a repository of the hub that you may read: check the name, or"
            f" {LOG_IN}"
        ) from error
    except RevisionNotFoundError as error:
        raise AccessError(f"{name} has no revision {revision!r}: name a branch, tag or commit") from error
    except HFValidationError as error:
        raise AccessError(f"{name} is neither a local folder nor a repository's name: check it") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise HubUnreachableError(_not_cached(name)) from error
    except TransientError as error:
        raise AccessError(
            f"{name} cannot be read from the hub ({error}), after several tries: run the command again later, what came"
            " is kept"
        ) from error
    except EntryNotFoundError as error:
        raise AccessError(
            f"{name} cannot be downloaded from the hub (it lists a file that it does not have): try again later"
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise AccessError(f"{name} may not be read with this token ({status}): {LOG_IN}") from error
        raise AccessError(f"{name} cannot be downloaded from the hub ({reason_of(error)}): try again") from error
    except Exception as error:  # errors of the HTTP client; hub versions use different clients
        if _is_connection(error):
            raise HubUnreachableError(_not_cached(name)) from error
        raise AccessError(f"{name} cannot be downloaded from the hub ({reason_of(error)}): try again") from error


def _not_cached(name: str) -> str:
    if is_offline():
        return (
            f"{name} is not a local folder, and the hub's cache does not have it: leave offline mode, or give a folder"
        )
    return (
        f"{name} is not a local folder, and the hub cannot be reached to download it: check the connection, or give a"
        " folder"
    )


def _is_connection(error: BaseException) -> bool:
    """Whether an error of an HTTP client says that there is no connection."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ConnectError", "ConnectTimeout", "ConnectionError", "NetworkError", "ProxyError"})
