"""Weight files: places of bytes, hashes, and the error of a full disk."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.export.errors import OutputError
from qwonnx.export.weight_files.external_data import ExternalDataWriter, ShardPrefix
from qwonnx.export.weight_files.layout import (
    ALIGNMENT,
    MAX_SHARD_BYTES,
    MIN_SHARD_BYTES,
    ExternalTensor,
    StoredSize,
    is_weight_file,
    lay_out,
)
from qwonnx.runtime.artifact.folder import file_sha256

pytestmark = pytest.mark.fast

SIZES = st.builds(
    lambda *stream_bytes: StoredSize(stream_bytes[: stream_bytes[-1]]),
    st.integers(1, 3 * ALIGNMENT),
    st.integers(1, ALIGNMENT + 1),
    st.integers(1, ALIGNMENT + 1),
    st.integers(1, 3),
)


def _begin(folder: Path, sizes: Sequence[StoredSize], shard_bytes: int | None = None) -> ExternalDataWriter:
    writer = ExternalDataWriter(folder, shard_bytes)
    writer.begin(writer.lay_out(sizes))
    return writer


def _write_all(writer: ExternalDataWriter, sizes: Sequence[StoredSize], shard_bytes: int | None = None) -> None:
    """Weight i has codes i + 1, scales 128 + i, and zero points 64 + i."""
    layouts = lay_out(sizes, shard_bytes)
    for shard in writer.begin(layouts):
        shard.open()
        for index in range(len(shard.layout.places)):
            weight = shard.layout.first + index
            streams = zip((weight + 1, 128 + weight, 64 + weight), sizes[weight].stream_bytes, strict=False)
            shard.append(index, [memoryview(bytes([value]) * num_bytes) for value, num_bytes in streams])
        shard.finish()


def test_tensors_follow_each_other_aligned_and_padded_with_zeros(tmp_path: Path) -> None:
    sizes = [StoredSize((3,)), StoredSize((5,))]
    with ExternalDataWriter(tmp_path) as writer:
        _write_all(writer, sizes)
    first, second = (place.tensors[0] for place in lay_out(sizes)[0].places)
    assert first == ExternalTensor("weights-00001.bin", 0, 3)
    assert second == ExternalTensor("weights-00001.bin", ALIGNMENT, 5)
    assert (tmp_path / "weights-00001.bin").read_bytes() == b"\1\1\1" + bytes(ALIGNMENT - 3) + b"\2" * 5


def test_scales_and_zero_points_have_files_of_their_own_beside_the_codes(tmp_path: Path) -> None:
    sizes = [StoredSize((4, 2)), StoredSize((3,)), StoredSize((4, 2, 1))]
    with ExternalDataWriter(tmp_path) as writer:
        _write_all(writer, sizes)
    places = lay_out(sizes)[0].places
    assert [[tensor.offset for tensor in place.tensors] for place in places] == [
        [0, 0],
        [ALIGNMENT],
        [2 * ALIGNMENT, ALIGNMENT, 0],
    ]
    scales = (tmp_path / "weights-00001.scales.bin").read_bytes()
    assert scales == b"\x80\x80" + bytes(ALIGNMENT - 2) + b"\x82\x82"
    assert (tmp_path / "weights-00001.zero_points.bin").read_bytes() == b"\x42"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(lay_out(sizes)[0].files)


def test_a_tensor_that_does_not_fit_starts_the_next_file_and_a_larger_one_has_its_own() -> None:
    sizes = [StoredSize((pages * ALIGNMENT,)) for pages in (2, 3, 1, 9, 1)]
    files = [place.tensors[0].file for shard in lay_out(sizes, 4 * ALIGNMENT) for place in shard.places]
    assert [file[-5] for file in files] == ["1", "2", "2", "3", "4"]


@given(st.lists(SIZES, min_size=1, max_size=12), st.integers(1, 8 * ALIGNMENT))
def test_no_two_tensors_overlap_and_every_one_is_aligned(sizes: list[StoredSize], shard_bytes: int) -> None:
    shards = lay_out(sizes, shard_bytes)
    assert [shard.first for shard in shards] == [
        sum(len(shard.places) for shard in shards[:index]) for index in range(len(shards))
    ]
    ends: dict[str, int] = {}
    places = [place for shard in shards for place in shard.places]
    for size, place in zip(sizes, places, strict=True):
        for tensor, num_bytes in zip(place.tensors, size.stream_bytes, strict=True):
            assert is_weight_file(tensor.file)
            assert tensor.offset % ALIGNMENT == 0
            assert 0 <= tensor.offset - ends.get(tensor.file, 0) < ALIGNMENT
            assert tensor.num_bytes == num_bytes
            ends[tensor.file] = tensor.offset + num_bytes
    for shard in shards:
        assert len(shard.places) == 1 or shard.file_bytes[0] <= shard_bytes
        assert shard.file_bytes == tuple(ends.pop(file) for file in shard.files)
    assert not ends


@pytest.mark.parametrize(
    ("total", "expected"), [(1 << 20, 1), (2 << 30, 8), (64 << 30, 16), (200 << 30, 50)], ids=["1 MB", "2", "64", "200"]
)
def test_models_of_every_size_have_some_shards_but_not_too_many(total: int, expected: int) -> None:
    sizes = [StoredSize((total >> 10,))] * 1024
    shards = lay_out(sizes)
    assert len(shards) == pytest.approx(expected, rel=0.1)
    assert all(shard.file_bytes[0] <= MAX_SHARD_BYTES for shard in shards)
    assert len(shards) == 1 or shards[0].file_bytes[0] > MIN_SHARD_BYTES - (total >> 10) - ALIGNMENT


def test_the_entries_are_the_files_sizes_and_hashes(tmp_path: Path) -> None:
    with ExternalDataWriter(tmp_path) as writer:
        _write_all(writer, [StoredSize((5000, 77)), StoredSize((1,)), StoredSize((2, 2))], shard_bytes=1)
    assert sorted(entry.path for entry in writer.files) == sorted(path.name for path in tmp_path.iterdir())
    assert len(writer.files) == 5
    for entry in writer.files:
        path = tmp_path / entry.path
        assert (entry.size, entry.sha256) == (path.stat().st_size, file_sha256(path))


def test_a_shard_goes_on_from_what_its_files_begin_with_and_drops_the_rest(tmp_path: Path) -> None:
    sizes = [StoredSize((6, 2)), StoredSize((4,))]
    with ExternalDataWriter(tmp_path) as writer:
        _write_all(writer, sizes)
    expected = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    whole = writer.files
    with ExternalDataWriter(tmp_path) as writer:
        (shard,) = writer.begin(writer.lay_out(sizes))
        shard.open()
        shard.append(0, [memoryview(b"\1" * 3), memoryview(b"\x80")])
        prefix = shard.prefix
        shard.append(0, [memoryview(b"wro"), memoryview(b"n")])
    (tmp_path / "weights-00002.bin").write_bytes(b"of another layout")
    with ExternalDataWriter(tmp_path) as writer:
        (shard,) = writer.begin(writer.lay_out(sizes), [prefix])
        assert shard.num_bytes == 4
        shard.open()
        shard.append(0, [memoryview(b"\1" * 3), memoryview(b"\x80")])
        shard.append(1, [memoryview(b"\2" * 4)])
        shard.finish()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == expected
    assert writer.files == whole


def test_what_is_dropped_is_room_on_the_disk_before_that_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights-00001.bin").write_bytes(bytes(1000))  # of a file that no mark is true of
    sizes: list[int] = []

    def free(writer: ExternalDataWriter) -> int:
        sizes.extend(path.stat().st_size for path in writer.folder.iterdir())
        return 10**9

    monkeypatch.setattr(ExternalDataWriter, "_free_bytes", free)
    _begin(tmp_path, [StoredSize((1000,))])
    assert sizes == [0]


def test_a_file_system_that_cannot_sync_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(file: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", cannot)
    with ExternalDataWriter(tmp_path) as writer:
        _write_all(writer, [StoredSize((3,))])
    assert [entry.size for entry in writer.files] == [3]


def test_a_weight_file_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / "weights-00001.bin").symlink_to(tmp_path / "precious")
    writer = ExternalDataWriter(tmp_path)
    with pytest.raises(OutputError, match="cannot write"):
        writer.begin(writer.lay_out([StoredSize((1,))]))
    assert (tmp_path / "precious").read_text() == "x"


def test_too_little_space_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    out = tmp_path / "building"
    out.mkdir()
    with pytest.raises(OutputError, match=r"[0-9.]+ [kMG]B free and the weights need 1000000 TB: free some space"):
        _begin(out, [StoredSize((9 * 10**17, 10**17))])
    assert list(out.iterdir()) == []


def test_a_disk_that_fills_up_names_what_is_free_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExternalDataWriter(tmp_path) as writer:
        (shard,) = writer.begin(writer.lay_out([StoredSize((10_000_000,))]))
        shard.open()
        shard.append(0, [memoryview(bytes(4_000_000))])

        def full(file: int, content: memoryview) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OutputError, match=r"No space left.* free and 6\.00 MB are still to be written; free some"):
            shard.append(0, [memoryview(bytes(6_000_000))])


def test_a_file_that_may_not_grow_is_an_output_error(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with ExternalDataWriter(tmp_path) as writer, pytest.raises(OutputError, match="File too large"):
            _write_all(writer, [StoredSize((200_000,))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_folder_that_is_gone_is_an_output_error(tmp_path: Path) -> None:
    folder = tmp_path / "building"
    folder.mkdir()
    writer = ExternalDataWriter(folder)
    layouts = writer.lay_out([StoredSize((1,))])
    (shard,) = writer.begin(layouts, [ShardPrefix.empty(layouts[0])])
    folder.rmdir()
    with pytest.raises(OutputError, match="No such file or directory"):
        shard.open()


def test_a_disk_that_is_really_full_is_an_output_error_and_its_file_is_closed(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExternalDataWriter, "_free_bytes", lambda self: 10**9)
    with ExternalDataWriter(small_disk) as writer, pytest.raises(OutputError, match="No space left on device"):
        _write_all(writer, [StoredSize((2_000_000,))])
