"""A checkpoint at a URL: read in ranges, once, through failures, and exported as the same bytes."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from qwonnx.export.checkpoint.remote import retries
from qwonnx.export.checkpoint.resolved_checkpoint import resolve_checkpoint
from qwonnx.export.errors import CheckpointError, TensorFormatError
from qwonnx.export.pipeline import ExportOptions, export_checkpoint
from qwonnx.export.planning.check import check_checkpoint
from qwonnx.export.planning.source import open_source
from qwonnx.runtime.artifact.manifest import Manifest, SourceFile
from tests.checkpoints import write_tiny
from tests.checkpoints.torch_files import write_torch
from tests.export.checkpoint.remote.range_server import RangeServer, range_server

ROOT = Path(__file__).resolve().parents[4]
OPTIONS = ExportOptions(memory_bytes=100_000_000)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    return write_tiny(tmp_path_factory.mktemp("url") / "tiny", num_shards=3, text_overrides=layers)


@pytest.fixture(scope="module")
def local(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """An artifact that was exported from the folder itself, and its manifest."""
    out = tmp_path_factory.mktemp("local") / "artifact"
    return out, export_checkpoint(tiny, out, OPTIONS)


@pytest.fixture
def server(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(retries, "_FIRST_WAIT", 0.001)
    with range_server(tiny) as running:
        yield running


def memory_copy(folder: Path, name: str) -> str:
    """The URL of a copy in fsspec's memory."""
    files = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            files.pipe_file(f"/{name}/{path.relative_to(folder)}", path.read_bytes())
    return f"memory://{name}"


@pytest.fixture
def memory(tiny: Path) -> Iterator[str]:
    yield memory_copy(tiny, "bucket/tiny")
    fsspec.filesystem("memory").store.clear()


def contents(artifact: Path) -> dict[str, bytes]:
    """Everything but the manifest, which names another source."""
    return {path.name: path.read_bytes() for path in sorted(artifact.iterdir()) if path.name != "manifest.json"}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def refused(url: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint(url, None)
    message = str(caught.value)
    assert "\n" not in message
    assert ": " in message
    return message


def test_an_export_reads_a_checkpoint_once_and_writes_the_same_bytes(
    server: RangeServer, tiny: Path, local: tuple[Path, Manifest], tmp_path: Path
) -> None:
    server.fails_every = 10
    host = server.url.removeprefix("http://")
    server.user = base64.b64encode(b"me:pass word").decode()
    manifest = export_checkpoint(f"http://me:pass%20word@{host}", tmp_path / "out", OPTIONS)
    assert contents(tmp_path / "out") == contents(local[0])
    assert server.failed >= 3
    assert server.sent <= 1.05 * size(tiny)
    # The manifest has hashes of local files, and what a store says of others.
    shards = sorted(tiny.glob("*.safetensors"))
    assert local[1].source.files == tuple(
        SourceFile(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest(), None)
        for path in shards
    )
    assert manifest.source.checkpoint == "tiny"
    assert [(file.name, file.size, file.sha256) for file in manifest.source.files] == [
        (path.name, path.stat().st_size, None) for path in shards
    ]
    assert all(file.version for file in manifest.source.files)
    assert b"word" not in (tmp_path / "out" / "manifest.json").read_bytes()


@pytest.mark.soak
def test_an_export_that_is_killed_goes_on_with_the_same_bytes(
    server: RangeServer, tiny: Path, local: tuple[Path, Manifest], tmp_path: Path
) -> None:
    server.seconds = 0.05
    out = tmp_path / "out"
    command = [sys.executable, "-m", "qwonnx.handlers.cli", "export", server.url, str(out), "--memory", "64MB"]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = tmp_path / ".out.incomplete" / "export.journal"
    try:
        deadline = time.monotonic() + 240
        while not (journal.exists() and b'"shard"' in journal.read_bytes()):
            assert first.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
    finally:
        first.kill()
        first.wait()
    server.seconds, server.sent = 0.0, 0
    resumed: list[int] = []
    options = dataclasses.replace(OPTIONS, resume=True)
    export_checkpoint(server.url, out, options, on_progress=lambda progress: resumed.append(progress.resumed_bytes))
    assert contents(out) == contents(local[0])
    assert max(resumed) > 0
    assert server.sent <= 1.05 * size(tiny)


def test_a_check_reads_headers_and_texts_only(server: RangeServer, memory: str, tiny: Path) -> None:
    expected = check_checkpoint(str(tiny))
    report = check_checkpoint(server.url)
    assert dataclasses.replace(report, name="tiny") == expected
    weights = sum(path.stat().st_size for path in tiny.glob("*.safetensors"))
    assert server.sent < size(tiny) - 0.9 * weights
    assert dataclasses.replace(check_checkpoint(memory), name="tiny") == expected


def test_pytorch_files_at_a_url_have_the_same_tensors(memory: str, tiny: Path, tmp_path: Path) -> None:
    made = write_torch(tiny, tmp_path / "torch", num_shards=2)
    expected = resolve_checkpoint(str(tiny), None).tensors
    with range_server(made) as running:
        for url in (running.url, memory_copy(made, "bucket/torch")):
            found = resolve_checkpoint(url, None).tensors
            assert found.names == expected.names
            assert all(torch.equal(found.read(name), expected.read(name)) for name in expected.names)


def test_a_gguf_file_at_a_url_is_refused_by_name(memory: str) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/gguf/tiny-Q8_0.gguf", b"GGUF")
    message = refused("memory://bucket/gguf")
    assert "memory://bucket/gguf has 'tiny-Q8_0.gguf', and an export reads GGUF from a disk of this machine" in message
    assert check_checkpoint("memory://bucket/gguf").refusal == message
    with pytest.raises(CheckpointError, match="reads GGUF from a disk"):
        open_source("memory://bucket/gguf")


def test_a_plan_takes_a_url(memory: str, tiny: Path) -> None:
    source, expected = open_source(memory), open_source(str(tiny))
    assert (source.name, source.config, source.copied) == ("tiny", expected.config, expected.copied)


def test_an_adapter_may_be_at_a_url(memory: str, tiny: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    url = memory_copy(adapter, "bucket/adapter")
    expected = check_checkpoint(str(tiny), adapters=[adapter]).refusal or ""
    assert check_checkpoint(memory, adapters=[url]).refusal == expected.replace(str(adapter), url)
    assert "memory://bucket/adapter has no adapter_model.safetensors" in expected.replace(str(adapter), url)


def test_a_file_that_changes_while_it_is_read_is_refused(memory: str, tiny: Path) -> None:
    shard = sorted(tiny.glob("*.safetensors"))[0].name
    remote = resolve_checkpoint(memory, None).remote
    assert remote is not None
    remote.check_unchanged()
    files = fsspec.filesystem("memory")
    files.pipe_file(f"/bucket/tiny/{shard}", files.cat_file(f"/bucket/tiny/{shard}"))
    with pytest.raises(TensorFormatError, match=f"memory://bucket/tiny/{shard} changed while it was read"):
        remote.check_unchanged()


def test_a_name_of_a_listing_that_leaves_the_folder_is_not_followed(memory: str) -> None:
    files = fsspec.filesystem("memory")
    files.store["/bucket/tiny/..\\evil.json"] = files.store["/bucket/tiny/config.json"]
    files.store["/bucket/tiny/a\nb.json"] = files.store["/bucket/tiny/config.json"]
    resolved = resolve_checkpoint(memory, None)
    names = [path.name for path in resolved.folder.iterdir()]
    assert "config.json" in names
    assert not [name for name in names if "evil" in name or not name.isprintable()]
    files.store["/bucket/tiny/..\\evil.safetensors"] = files.store["/bucket/tiny/config.json"]
    assert "lists a file '..\\\\evil.safetensors', which is not a shard's name" in refused(memory)


def test_a_text_file_that_is_too_large_is_not_read(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwonnx.export.checkpoint.remote import mirror

    monkeypatch.setattr(mirror, "_MAX_TEXT_BYTES", 10_000)
    assert "memory://bucket/tiny/tokenizer.json has" in refused(memory)


def test_an_error_names_the_url_and_not_the_mirror(memory: str) -> None:
    fsspec.filesystem("memory").rm("/bucket/tiny/config.json")
    assert refused(memory).startswith("memory://bucket/tiny has no config.json: copy the one")


def test_what_is_not_there_is_one_line(server: RangeServer) -> None:
    assert "memory://nothing/here does not exist: check the URL" in refused("memory://nothing/here")
    assert f"{server.url}/nothing does not exist: it has none of the files of a checkpoint" in refused(
        f"{server.url}/nothing"
    )


def test_a_server_that_never_answers_right_is_one_line(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.fails_every = 1
    assert "cannot be read (status 50" in refused(server.url)
    monkeypatch.setattr(retries, "_FIRST_WAIT", 0.001)
    assert "after several tries: check the network" in refused("http://127.0.0.1:9/models/tiny")


def test_a_password_goes_to_its_host_and_into_no_message(server: RangeServer) -> None:
    host = server.url.removeprefix("http://")
    server.user = base64.b64encode(b"me:pass word").decode()
    assert "may not be read: give a user and a password in the URL" in refused(server.url)
    url = f"http://me:pass%20word@{host}"
    report = check_checkpoint(url)
    assert (report.name, report.refusal) == (server.url, None)
    wrong = refused(f"http://me:secret@{host}")
    assert "secret" not in wrong
    assert "me:" not in wrong


def test_a_redirect_to_another_host_is_not_followed(server: RangeServer) -> None:
    server.redirects_to = "http://localhost:9/other"
    assert "127.0.0.1 redirects to localhost, and a checkpoint is only read from the host that is named" in refused(
        server.url
    )


def test_a_server_without_ranges_is_refused(server: RangeServer) -> None:
    server.ignores_ranges = True
    assert "cannot be read in ranges (status 200)" in refused(server.url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@bucket/folder", "has credentials in it"),
        ("https://host/folder?X-Amz-Signature=secret", "has a query or a fragment"),
        ("simplecache::s3://bucket/secret", "chains file systems"),
        ("s3://", "names no folder"),
        ("https://host/a/../b", "has . or .. in its path"),
        ("https://host:secret/a", "check its host and port"),
        ("file:///tmp/secret", "give its path"),
        ("unknown://bucket/folder", "cannot be opened"),
        ("https://host/a b", "malformed"),
    ],
)
def test_a_url_that_cannot_be_is_refused_and_its_secret_not_shown(url: str, message: str) -> None:
    text = refused(url)
    assert message in text
    assert "secret" not in text


def test_a_url_has_no_revision(memory: str) -> None:
    with pytest.raises(CheckpointError, match="memory://bucket/tiny has no revision 'main'"):
        resolve_checkpoint(memory, "main")


@pytest.mark.parametrize(("url", "extra"), [("s3://bucket/folder", "s3"), ("gs://bucket/folder", "gcs")])
def test_a_client_that_is_not_installed_is_named(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert f"{extra}" in refused(url)
    assert "needs a package that is not installed" in refused(url)


def test_what_another_program_opens_must_be_a_folder(memory: str) -> None:
    with pytest.raises(CheckpointError, match="memory://bucket/tiny is read in ranges, and transformers needs"):
        _ = resolve_checkpoint(memory, None).whole_folder
