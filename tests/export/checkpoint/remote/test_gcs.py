"""A checkpoint in Google Cloud Storage, by an emulator of it: read in ranges through its own client.

It needs gcsfs and gcp-storage-emulator, which the development environment does not have:

    python -m venv gcs && gcs/bin/pip install -e .[dev,gcs] gcp-storage-emulator
    gcs/bin/python -m pytest -m soak tests/export/checkpoint/remote/test_gcs.py
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from qwonnx.export.checkpoint.resolved_checkpoint import resolve_checkpoint
from qwonnx.export.errors import AccessError
from qwonnx.export.pipeline import export_checkpoint
from qwonnx.export.planning.check import check_checkpoint
from tests.checkpoints import write_tiny

# Kinds of buckets that gcsfs asks another service about, which the emulator has not; read when it is imported.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
pytest.importorskip("gcp_storage_emulator", reason="gcp-storage-emulator is not installed: see the docstring")
pytest.importorskip("gcsfs", reason="gcsfs is not installed: see the module's docstring")

pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("default")]  # other packages warn

BUCKET, URL = "models", "gs://models/some/tiny"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("gcs") / "tiny", num_shards=3)


@pytest.fixture
def gcs(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The emulator's address, with the checkpoint in a bucket."""
    import fsspec.config
    import gcp_storage_emulator.server as emulator
    import gcsfs

    # The client keeps connections open, and asks on several at once.
    monkeypatch.setattr(emulator.server, "HTTPServer", ThreadingHTTPServer)
    # The emulator asks for no credentials; the client would look for some of this machine first.
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    address = f"http://127.0.0.1:{server._api._httpd.server_port}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "somebody")
    gcsfs.GCSFileSystem.clear_instance_cache()
    try:
        for path in tiny.rglob("*"):
            if path.is_file():
                query = {"uploadType": "media", "name": f"some/tiny/{path.relative_to(tiny)}"}
                place = f"{address}/upload/storage/v1/b/{BUCKET}/o"
                httpx.post(place, params=query, content=path.read_bytes(), trust_env=False).raise_for_status()
        yield address
    finally:
        server.stop()
        gcsfs.GCSFileSystem.clear_instance_cache()


def contents(artifact: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(artifact.iterdir()) if path.name != "manifest.json"}


def test_an_export_from_a_bucket_is_that_of_the_folder(gcs: str, tiny: Path, tmp_path: Path) -> None:
    export_checkpoint(tiny, tmp_path / "local")
    manifest = export_checkpoint(URL, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "local")
    assert all(file.version for file in manifest.source.files)


def test_a_check_gives_the_same_verdict(gcs: str, tiny: Path) -> None:
    assert dataclasses.replace(check_checkpoint(URL), name="tiny") == check_checkpoint(str(tiny))


@pytest.mark.parametrize("url", ["gs://models/nothing", "gs://no-such-bucket/tiny"])
def test_what_is_not_there_is_one_line(gcs: str, url: str) -> None:
    with pytest.raises(AccessError, match=f"{url} does not exist: check the URL"):
        resolve_checkpoint(url, None)
