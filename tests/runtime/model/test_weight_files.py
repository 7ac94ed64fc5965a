"""Weight files in use: what a session maps of them comes into memory as asked for, and a cut file is noticed."""

from __future__ import annotations

import dataclasses
import mmap
import os
import resource
import shutil
import sys
import time
from pathlib import Path

import pytest

from qwonnx.runtime.artifact.folder import Artifact, file_sha256, open_artifact
from qwonnx.runtime.artifact.manifest import ArtifactFileError, FileEntry, write_manifest
from qwonnx.runtime.engine.request import FinishReason
from qwonnx.runtime.errors import SessionError, SettingsError
from qwonnx.runtime.model import weight_files
from qwonnx.runtime.model.weight_files import MappedRange, WeightFiles
from qwonnx.runtime.settings import Residency
from tests.runtime.counting_model import CountingModel
from tests.runtime.engine.engine_driver import GREEDY, SMALL, Received, drive

pytestmark = pytest.mark.fast

SIZE = 64 << 12
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/maps and madvise")


@pytest.fixture
def artifact(counting_model: CountingModel, tmp_path: Path) -> Artifact:
    """The counting model beside a weight file that its graph does not use."""
    folder = Path(shutil.copytree(counting_model.folder, tmp_path / "artifact"))
    (folder / "weights-00001.bin").write_bytes(os.urandom(SIZE))
    manifest = open_artifact(folder).manifest
    entry = FileEntry("weights-00001.bin", SIZE, file_sha256(folder / "weights-00001.bin"))
    write_manifest(folder, dataclasses.replace(manifest, files=(*manifest.files, entry)))
    return open_artifact(folder)


def test_a_file_that_is_cut_while_it_is_served_ends_requests_instead_of_the_process(
    artifact: Artifact, counting_model: CountingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_files, "_CHECK_SECONDS", 0.0)
    prompt = counting_model.tokenizer.encode("abc")
    with dataclasses.replace(counting_model, folder=artifact.folder).open(SMALL) as engine:
        engine.submit(prompt, GREEDY, answered := Received())
        drive(engine)
        assert answered.tokens == counting_model.answer(prompt, 12)
        os.truncate(artifact.folder / "weights-00001.bin", SIZE - 1)
        engine.submit(prompt, GREEDY, refused := Received())
        drive(engine)
    assert refused.reason is FinishReason.ERROR
    assert f"has {SIZE - 1} bytes where the manifest says {SIZE}" in (refused.outputs[-1].error or "")


def test_sizes_are_compared_at_once_and_then_once_a_second(artifact: Artifact) -> None:
    files = WeightFiles(artifact)
    os.truncate(artifact.folder / "weights-00001.bin", 5)
    files.check()
    time.sleep(1.01)
    with pytest.raises(SessionError, match="copy the artifact"):
        files.check()
    with pytest.raises(ArtifactFileError, match="has 5 bytes"):
        WeightFiles(artifact)
    files.close()
    files.check()


def test_a_file_that_is_replaced_is_noticed_while_a_session_is_created_and_harmless_later(artifact: Artifact) -> None:
    files = WeightFiles(artifact)
    files.check_mapped()
    path = artifact.folder / "weights-00001.bin"
    path.with_suffix(".new").write_bytes(b"short")
    path.with_suffix(".new").rename(path)
    files.check()
    with pytest.raises(SessionError, match="was replaced"):
        files.check_mapped()
    files.close()


@on_linux
@pytest.mark.parametrize("residency", Residency)
def test_mapped_weights_come_into_memory_as_asked_for(artifact: Artifact, residency: Residency) -> None:
    files = WeightFiles(artifact)
    with (artifact.folder / "weights-00001.bin").open("rb") as file:
        assert files.mapped_ranges() == []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
            (mapped,) = files.mapped_ranges()
            assert mapped.num_bytes == SIZE
            assert _field(mapped, "Rss") == 0
            files.make_resident(residency)
            everything = residency in (Residency.POPULATE, Residency.LOCK)
            assert _field(mapped, "Rss") == (SIZE if everything else 0)
            assert _field(mapped, "Locked") == (SIZE if residency is Residency.LOCK else 0)
    files.close()


@on_linux
def test_reading_ahead_stops_where_memory_ends(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    advised: list[MappedRange] = []
    monkeypatch.setattr(weight_files, "_madvise", lambda mapped, advice: advised.append(mapped))
    files = WeightFiles(artifact)
    with (
        (artifact.folder / "weights-00001.bin").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ),
    ):
        for room, number in ((SIZE, 1), (SIZE - 1, 0), (None, 1)):
            advised.clear()
            monkeypatch.setattr(weight_files, "free_memory_bytes", lambda room=room: room)
            files._read_ahead()
            assert len(advised) == number
    files.close()


@on_linux
def test_what_the_system_refuses_is_a_settings_error(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = MappedRange(1 << 46, 4096)
    monkeypatch.setattr(WeightFiles, "mapped_ranges", lambda self: [outside])
    files = WeightFiles(artifact)
    with pytest.raises(SettingsError, match="ulimit -l"):
        files.make_resident(Residency.LOCK)
    with pytest.raises(SettingsError, match="choose willneed"):
        files.make_resident(Residency.POPULATE)
    monkeypatch.setattr(weight_files, "_MAPS", Path("/nowhere"))
    with pytest.raises(SettingsError, match="needs Linux"):
        files.make_resident(Residency.LOCK)
    files.close()


def _field(mapped: MappedRange, name: str) -> int:
    """Bytes of a field of the range in /proc/self/smaps."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.startswith(f"{mapped.address:x}-")
        elif inside and line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no mapping at {mapped.address:x} in pages of {resource.getpagesize()}")
