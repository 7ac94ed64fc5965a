"""Downloads a repository of the hub into the hub's cache: only the files that an export reads.

config.json comes first, then the other texts, so that a model that cannot be exported is refused before its weights
come. The weights are the files that choose_files chooses among the listed names. A download that breaks, or that Ctrl-C
ends, keeps what came; the next one goes on there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub import constants, hf_hub_download, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils._headers import build_hf_headers

from qwonnx.export.checkpoint.chosen_files import choose_files
from qwonnx.export.checkpoint.config import CONFIG_NAME, load_config
from qwonnx.export.checkpoint.foreign_formats import refuse_adapter
from qwonnx.export.checkpoint.gguf.files import refuse_elsewhere
from qwonnx.export.checkpoint.needed_files import CONFIG_FILES, is_text_file
from qwonnx.export.checkpoint.remote.addresses import Repository
from qwonnx.export.checkpoint.remote.disk_room import check_room, on_one_disk
from qwonnx.export.checkpoint.remote.http_client import HttpClient
from qwonnx.export.checkpoint.remote.hub_blob import MAX_BYTES, fetch_blob, part_bytes
from qwonnx.export.checkpoint.remote.hub_client import (
    REMEDY,
    HubUnreachableError,
    commit_of,
    hub_errors,
    is_offline,
    list_files,
    tried,
)
from qwonnx.export.checkpoint.remote.mirror import Mirror
from qwonnx.export.checkpoint.remote.store import StoredObject
from qwonnx.export.errors import AccessError, MissingTensorError
from qwonnx.runtime.adapters.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS

# Called with the bytes that are there and the bytes of all files.
OnBytes = Callable[[int, int], None]

_FILES_AT_ONCE = 4
_WAIT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A folder of the hub's cache with files of one commit."""

    folder: Path
    commit: str


def download_checkpoint(
    repository: Repository, weights_file: str | None = None, *, offline: bool = False, on_bytes: OnBytes | None = None
) -> Snapshot:
    """Download a checkpoint, or find it in the cache if the hub cannot be reached.

    Args:
        repository: of the hub.
        weights_file: see choose_files.
        offline: look only into the cache.
        on_bytes: called from this thread, repeatedly.

    Raises:
        CheckpointError: there is no such repository, it may not be read, it is not a checkpoint that is exported, the
            disk has no room for it, or the download fails.
    """

    found = _downloaded(
        repository, lambda download: download.weight_files(weights_file), offline=offline, on_bytes=on_bytes
    )
    try:
        choose_files(found.folder, weights_file)
    except MissingTensorError as error:
        raise AccessError(
            f"the hub's cache has only a part of {repository.name} ({error}): run the command again with a connection"
        ) from error
    return found


def bytes_to_download(repository: Repository, folder: Path) -> int:
    """What download_checkpoint would take of the free space of a folder's disk; 0 if the hub cannot be reached.

    Texts of the checkpoint are downloaded now.

    Raises:
        CheckpointError: see download_checkpoint.
    """
    if is_offline() or not on_one_disk(Path(constants.HF_HUB_CACHE), folder):
        return 0
    try:
        download = _Download(repository, None)
        return download.missing_bytes(download.missing(download.weight_files(None)))
    except HubUnreachableError:  # what the cache has may do
        return 0


def download_config(repository: Repository, *, offline: bool = False) -> Snapshot:
    """Download only config.json; raises as download_checkpoint does."""

    def needed(download: _Download) -> list[str]:
        download.with_config()
        return []

    return _downloaded(repository, needed, offline=offline, on_bytes=None)


def download_adapter(repository: Repository, *, offline: bool = False, on_bytes: OnBytes | None = None) -> Snapshot:
    """Download an adapter, and the texts beside it; raises as download_checkpoint does."""

    def needed(download: _Download) -> list[str]:
        return [name for name in download.safe if "/" not in name and (is_text_file(name) or name == ADAPTER_WEIGHTS)]

    return _downloaded(repository, needed, offline=offline, on_bytes=on_bytes)


def _downloaded(
    repository: Repository, needed: Callable[[_Download], list[str]], *, offline: bool, on_bytes: OnBytes | None
) -> Snapshot:
    if not (offline or is_offline()):
        try:
            download = _Download(repository, on_bytes)
            download.fetch(needed(download))
            return Snapshot(download.folder, download.commit)
        except HubUnreachableError as error:
            try:
                return _cached(repository)
            except HubUnreachableError:
                raise error from None
    try:
        return _cached(repository)
    except HubUnreachableError as error:
        raise AccessError(
            f"{repository.name} is not in the hub's cache, and offline mode downloads nothing: leave --offline or"
            " HF_HUB_OFFLINE out once, or give a folder"
        ) from error


def _cached(repository: Repository) -> Snapshot:
    """What the cache has of a repository, with config.json if it has one."""
    with hub_errors(repository.name, repository.revision):
        folder = Path(
            snapshot_download(
                repository.name, revision=repository.revision, allow_patterns=[CONFIG_NAME], local_files_only=True
            )
        )
    return Snapshot(folder, folder.name)  # the cache keeps a snapshot in a folder that is named by its commit


class _Download:
    """One commit of a repository, and files of it that come into the cache."""

    def __init__(self, repository: Repository, on_bytes: OnBytes | None) -> None:
        self.commit = commit_of(repository)
        self._name = repository.name
        listed = list_files(repository.name, self.commit)
        self._mirror = Mirror(repository.name.rpartition("/")[2], repository.name)
        self.safe = {found.name: found for found in self._mirror.add(listed.values())}
        self._on_bytes = on_bytes or (lambda done, total: None)

        def remember() -> str:
            # This also notes in the cache which commit a branch is.
            return snapshot_download(
                repository.name, revision=repository.revision, allow_patterns=[CONFIG_NAME], tqdm_class=cast(Any, _Bar)
            )

        folder = Path(tried(repository.name, repository.revision, remember))
        self.folder = folder.with_name(self.commit)
        self._blobs = folder.parent.parent / "blobs"

    def with_config(self) -> Mirror:
        """Download config.json, and check it.

        Raises:
            CheckpointError: the model is not supported, or is an adapter or a GGUF file.
        """
        configs = [name for name in CONFIG_FILES if name in self.safe]
        self.fetch(configs)
        for name in configs:
            self._mirror.put(self.safe[name], (self.folder / name).read_bytes())
        with self._mirror.naming():
            if ADAPTER_CONFIG in self.safe:
                refuse_adapter(self._mirror.folder, has_weights=CONFIG_NAME in self.safe)
            refuse_elsewhere(self._mirror.folder)
            load_config(self._mirror.folder)
        return self._mirror

    def weight_files(self, weights_file: str | None) -> list[str]:
        """Names of the files that an export reads, after all texts were downloaded; see choose_files."""
        mirror = self.with_config()
        texts = [name for name in self.safe if is_text_file(name)]
        self.fetch(texts)
        for name in texts:
            mirror.put(self.safe[name], (self.folder / name).read_bytes())
        with mirror.naming():
            return list(choose_files(mirror.folder, weights_file).names)

    def missing(self, names: Sequence[str]) -> list[StoredObject]:
        """Of files, those that the cache does not have."""
        return [self.safe[name] for name in names if not self._is_cached(name)]

    def missing_bytes(self, missing: Sequence[StoredObject]) -> int:
        """Of missing files, without the parts that an interrupted download left."""
        there = sum(part_bytes(self._blobs, found) for found in missing if _is_large(found))
        return sum(found.size for found in missing) - there

    def fetch(self, names: Sequence[str]) -> None:
        """Download files that the cache does not have; raises as download_checkpoint does.

        The error of one, and Ctrl-C, end all others at their next piece.
        """
        missing = self.missing(names)
        if not missing:
            return
        total = sum(found.size for found in missing)
        check_room(Path(constants.HF_HUB_CACHE), self.missing_bytes(missing), self._name)
        counter = _Counter()
        with _quiet_client(), ThreadPoolExecutor(_FILES_AT_ONCE, "qwonnx-hub") as pool:
            waiting = {pool.submit(self._fetch_one, found, counter) for found in missing}
            try:
                while waiting:
                    finished, waiting = wait(waiting, timeout=_WAIT_SECONDS)
                    for job in finished:
                        job.result()
                    self._on_bytes(min(counter.num_bytes, total), total)
            except BaseException:
                counter.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)  # leaving the block waits for running jobs
                raise

    def _is_cached(self, name: str) -> bool:
        found = try_to_load_from_cache(self._name, name, revision=self.commit)
        return isinstance(found, str) and Path(found).stat().st_size == self.safe[name].size

    def _fetch_one(self, found: StoredObject, counter: _Counter) -> None:
        if _is_large(found) and not (self._blobs / str(found.sha256)).exists():
            client = HttpClient(build_hf_headers, to_any_host=True, remedy=REMEDY)
            url = hf_hub_url(self._name, found.name, revision=self.commit)
            fetch_blob(client, url, found, self._blobs, counter.add)

        def ask() -> str:
            return hf_hub_download(self._name, found.name, revision=self.commit, tqdm_class=cast(Any, counter.bar))

        tried(self._name, self.commit, ask)


def _is_large(found: StoredObject) -> bool:
    return found.sha256 is not None and found.size <= MAX_BYTES


class _StoppedError(Exception):
    """A download that is not wanted any more."""


class _Counter:
    """Counts bytes of downloads in other threads, and stops them."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.stopped = threading.Event()
        self._lock = threading.Lock()

    def add(self, num_bytes: float | None) -> None:
        if self.stopped.is_set():
            raise _StoppedError
        with self._lock:
            self.num_bytes += int(num_bytes or 0)

    def bar(self, **options: Any) -> _Bar:
        return _Bar(self, **options)


class _Bar:
    """In the place of a progress bar of tqdm: the hub's client calls it for every piece of a file."""

    n: float = 0
    total: float = 0

    def __init__(self, counter: _Counter | None = None, **options: Any) -> None:
        # A download of chunks has two bars, and this one counts only the chunks that were new.
        self._counter = None if str(options.get("desc", "")).endswith("downloading bytes") else counter
        self.update(options.get("initial"))

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Whatever else is shown of it."""
        return lambda *args, **options: None

    def update(self, n: float | None = 1) -> None:
        if self._counter is not None:
            self._counter.add(n)

    def close(self) -> None:
        """Nothing: it is not shown."""


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Without the client's warnings, which have whole URLs with their signatures, and its advice."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
