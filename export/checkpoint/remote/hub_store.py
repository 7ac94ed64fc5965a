"""A repository of the hub as a store: read in ranges, without a download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from huggingface_hub import hf_hub_url
from huggingface_hub.utils._headers import build_hf_headers

from qwonnx.export.checkpoint.remote.http_client import HttpClient
from qwonnx.export.checkpoint.remote.hub_client import REMEDY, list_files
from qwonnx.export.checkpoint.remote.store import StoredObject


class HubStore:
    """The files of one commit. The hub redirects to where its large files lie; the token does not go there."""

    def __init__(self, name: str, commit: str) -> None:
        self.shown = name
        self._commit = commit
        self._client = HttpClient(build_hf_headers, to_any_host=True, remedy=REMEDY)

    def objects(self) -> Mapping[str, StoredObject]:
        return list_files(self.shown, self._commit)

    def unlisted(self, names: Sequence[str]) -> Mapping[str, StoredObject]:
        return {}

    def read(self, found: StoredObject, start: int, end: int) -> bytes:
        url = hf_hub_url(self.shown, found.name, revision=self._commit)
        return self._client.read(url, start, end, found.size)
