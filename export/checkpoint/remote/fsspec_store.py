"""A folder in an object store, by fsspec: s3://, gs://, and whatever has an installed implementation.

Credentials, endpoints and regions are found as the store's own client finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwonnx.export.checkpoint.remote.addresses import FolderUrl, reason_of
from qwonnx.export.checkpoint.remote.retries import TransientError, with_retries
from qwonnx.export.checkpoint.remote.store import StoredObject, changed, missing, not_allowed, unreachable
from qwonnx.export.errors import AccessError, CheckpointError
from qwonnx.runtime.install import how_to_install

# The extra that installs the client of a scheme.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}

# What stores call the thing that changes with the content; the first that is there is used.
_VERSIONS = ("VersionId", "version_id", "generation", "ETag", "etag", "content_md5", "blob_id", "mtime")
_TIMES = ("LastModified", "last_modified", "updated", "created")

# Files in these folders are listed too; of others only names that say what the folder is.
_MAX_FOLDERS = 16
_MAX_OBJECTS = 20_000

_NO_CREDENTIALS = frozenset(
    {
        "CredentialRetrievalError",
        "DefaultCredentialsError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "RefreshError",
        "TokenRetrievalError",
        "UnauthorizedSSOTokenError",
    }
)
_REMEDY = (
    "check the credentials, as the store's own client finds them (environment, configuration file), and its rights"
)


class FsspecStore:
    """The folder.

    Raises:
        CheckpointError: no client for its scheme is installed.
    """

    def __init__(self, address: FolderUrl) -> None:
        self.shown = address.url
        extra = _EXTRAS.get(address.scheme)
        try:
            from fsspec.core import url_to_fs

            self._system, self._root = url_to_fs(address.url)
        except ImportError as error:
            remedy = how_to_install(extra) if extra else f"{reason_of(error)}"
            raise AccessError(f"{address.scheme}:// needs a package that is not installed: {remedy}") from error
        except Exception as error:
            raise AccessError(f"{self.shown} cannot be opened ({reason_of(error)}): check the URL") from error

    def objects(self) -> Mapping[str, StoredObject]:
        found: dict[str, StoredObject] = {}
        folders: list[str] = []
        for entry in self._listed(self._root):
            name = _last_part(entry)
            if entry.get("type") == "directory":
                folders.append(name)
            elif (made := _object(name, entry)) is not None:
                found[name] = made
        for folder in sorted(filter(None, folders))[:_MAX_FOLDERS]:
            for entry in self._listed(f"{self._root}/{folder}"):
                if entry.get("type") != "directory" and (made := _object(f"{folder}/{_last_part(entry)}", entry)):
                    found[made.name] = made
        if not found:
            raise missing(self.shown, "check the URL: there are no files under it")
        return found

    def unlisted(self, names: Sequence[str]) -> Mapping[str, StoredObject]:
        return {}

    def read(self, found: StoredObject, start: int, end: int) -> bytes:
        path = f"{self._root}/{found.name}"

        def request() -> bytes:
            content: bytes = self._system.cat_file(path, start=start, end=end)
            if len(content) < end - start:
                raise TransientError(f"{len(content)} of {end - start} bytes came")
            return content

        content = self._tried(f"{self.shown}/{found.name}", request)
        if len(content) > end - start:
            raise changed(f"{self.shown}/{found.name}")
        return bytes(content)

    def _listed(self, path: str) -> list[dict[str, Any]]:
        def request() -> list[dict[str, Any]]:
            self._system.invalidate_cache()
            return [entry for entry in self._system.ls(path, detail=True) if isinstance(entry, dict)]

        entries: list[dict[str, Any]] = self._tried(self.shown, request)
        if len(entries) > _MAX_OBJECTS:
            raise AccessError(f"{self.shown} has more than {_MAX_OBJECTS} files: give the checkpoint's own folder")
        own = self._system._strip_protocol(path).strip("/")
        return [entry for entry in entries if str(entry.get("name", "")).strip("/") != own]

    def _tried(self, shown: str, request: Callable[[], Any]) -> Any:
        def once() -> Any:
            try:
                return request()
            except (CheckpointError, TransientError):
                raise
            except (FileNotFoundError, NotADirectoryError) as error:
                raise missing(shown, "check the URL") from error
            except PermissionError as error:
                raise not_allowed(shown, _REMEDY) from error
            except (ValueError, TypeError, NotImplementedError) as error:
                raise AccessError(f"{shown} cannot be read ({reason_of(error)}): check the URL") from error
            except Exception as error:  # clients have errors of their own, most of them of the network
                if type(error).__name__ in _NO_CREDENTIALS or getattr(error, "code", None) in (401, 403):
                    raise not_allowed(shown, f"{_REMEDY} ({reason_of(error)})") from error
                raise TransientError(reason_of(error)) from error

        try:
            return with_retries(once)
        except TransientError as error:
            raise unreachable(shown, str(error)) from error


def _last_part(entry: Mapping[str, Any]) -> str:
    return str(entry.get("name", "")).rstrip("/").rpartition("/")[2]


def _object(name: str, entry: Mapping[str, Any]) -> StoredObject | None:
    """A listed file; None if it has no name or no size."""
    size = entry.get("size")
    if not name or type(size) is not int or not 0 <= size < 1 << 62:
        return None
    stated = next((entry[key] for key in (*_VERSIONS, *_TIMES) if entry.get(key) not in (None, "", "null")), "")
    version = str(stated).strip('"')[:200]
    return StoredObject(name, size, "".join(c for c in version if c.isprintable()))
