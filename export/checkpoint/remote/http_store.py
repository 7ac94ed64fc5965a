"""A folder on a web server, over http:// or https://. A web server has no listing, so known names are asked for.

The weights are those of an index, or model.safetensors, or pytorch_model.bin.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from qwonnx.export.checkpoint.remote.addresses import FolderUrl
from qwonnx.export.checkpoint.remote.http_client import Answer, HttpClient
from qwonnx.export.checkpoint.remote.store import StoredObject, missing
from qwonnx.export.errors import AccessError

_ASKED_AT_ONCE = 8
_REMEDY = "give a user and a password in the URL (https://user:password@host/folder), or make it readable"


class HttpStore:
    """The folder.

    Args:
        address: of the folder.
        known: names that are asked for.
    """

    def __init__(self, address: FolderUrl, known: tuple[str, ...]) -> None:
        self._address = address
        self._known = known
        self._client = HttpClient(self._secret_headers, to_any_host=False, remedy=_REMEDY)

    @property
    def shown(self) -> str:
        return self._address.url

    def objects(self) -> Mapping[str, StoredObject]:
        found = self.unlisted(self._known)
        if not found:
            raise missing(self.shown, "it has none of the files of a checkpoint; check the URL")
        return found

    def unlisted(self, names: Sequence[str]) -> Mapping[str, StoredObject]:
        with ThreadPoolExecutor(_ASKED_AT_ONCE, "qwonnx-http") as pool:
            answers = list(pool.map(self._client.head, map(self._url, names)))
        return {name: self._object(name, answer) for name, answer in zip(names, answers, strict=True) if answer}

    def read(self, found: StoredObject, start: int, end: int) -> bytes:
        etag = found.version if found.version.startswith('"') else None
        return self._client.read(self._url(found.name), start, end, found.size, etag)

    def _object(self, name: str, answer: Answer) -> StoredObject:
        if answer.size is None:
            raise AccessError(f"{self._url(name)} has no Content-Length: copy the checkpoint to another server")
        return StoredObject(name, answer.size, answer.etag or answer.modified or "")

    def _url(self, name: str) -> str:
        return f"{self._address.url}/{quote(name)}"

    def _secret_headers(self) -> dict[str, str]:
        if self._address.user is None and self._address.password is None:
            return {}
        pair = f"{self._address.user or ''}:{self._address.password or ''}"
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
