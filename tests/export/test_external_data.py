"""Weight files: where bytes lie, what their hashes are, and what a full disk says."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from qwonnx.export.artifact import file_sha256
from qwonnx.export.errors import OutputError
from qwonnx.export.external_data import ALIGNMENT, ExternalDataWriter, ExternalTensor


def _write(writer: ExternalDataWriter, content: bytes) -> ExternalTensor:
    tensor = writer.begin(len(content))
    tensor.write(memoryview(content))
    return tensor.tensor


def test_tensors_follow_each_other_aligned_and_padded_with_zeros(tmp_path: Path) -> None:
    with ExternalDataWriter(tmp_path) as writer:
        first, second = _write(writer, b"abc"), _write(writer, b"defgh")
    assert first == ExternalTensor("weights-00001.bin", 0, 3)
    assert second == ExternalTensor("weights-00001.bin", ALIGNMENT, 5)
    assert (tmp_path / "weights-00001.bin").read_bytes() == b"abc" + bytes(ALIGNMENT - 3) + b"defgh"


def test_a_tensor_that_does_not_fit_starts_the_next_file_and_a_small_one_still_fills_the_first(tmp_path: Path) -> None:
    with ExternalDataWriter(tmp_path, shard_bytes=4 * ALIGNMENT) as writer:
        files = [_write(writer, bytes(pages * ALIGNMENT)).file[-5] for pages in (2, 3, 1, 9, 1)]
    assert files == ["1", "2", "1", "3", "4"]


def test_two_tensors_may_grow_side_by_side_in_files_of_their_own(tmp_path: Path) -> None:
    with ExternalDataWriter(tmp_path) as writer:
        _write(writer, b"first")
        codes, scales = writer.begin(4), writer.begin(2)
        codes.write(memoryview(b"co"))
        scales.write(memoryview(b"s"))
        codes.write(memoryview(b"de"))
        scales.write(memoryview(b"c"))
        after = _write(writer, b"after")
    assert (codes.tensor.file, scales.tensor.file, after.file) == (
        "weights-00001.bin",
        "weights-00002.bin",
        "weights-00001.bin",
    )
    for tensor, content in ((codes.tensor, b"code"), (scales.tensor, b"sc"), (after, b"after")):
        stored = (tmp_path / tensor.file).read_bytes()
        assert stored[tensor.offset : tensor.offset + tensor.num_bytes] == content


def test_the_entries_are_the_files_sizes_and_hashes(tmp_path: Path) -> None:
    with ExternalDataWriter(tmp_path, shard_bytes=1) as writer:
        for content in (b"x" * 5000, b"", b"y"):
            _write(writer, content)
    assert sorted(entry.path for entry in writer.files) == sorted(path.name for path in tmp_path.iterdir())
    for entry in writer.files:
        path = tmp_path / entry.path
        assert (entry.size, entry.sha256) == (path.stat().st_size, file_sha256(path))


def test_too_little_space_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    out = tmp_path / "building"
    out.mkdir()
    with pytest.raises(OutputError, match=r"MB free and the weights need 1,000,000,000,000\.0 MB: free some space"):
        ExternalDataWriter(out).require_space(10**18)
    assert list(out.iterdir()) == []


def test_a_disk_that_fills_up_names_what_is_free_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExternalDataWriter(tmp_path) as writer:
        writer.require_space(10_000_000)
        tensor = writer.begin(10_000_000)
        tensor.write(memoryview(bytes(4_000_000)))

        def full(file: int, content: memoryview) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OutputError, match=r"No space left.* free and 6\.0 MB are still to be written; free some"):
            tensor.write(memoryview(bytes(6_000_000)))


def test_a_file_that_may_not_grow_is_an_output_error(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with ExternalDataWriter(tmp_path) as writer, pytest.raises(OutputError, match="File too large"):
            _write(writer, bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_folder_that_is_gone_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        ExternalDataWriter(tmp_path / "gone" / "building").begin(1)


def test_a_disk_that_is_really_full_is_an_output_error_and_its_file_is_closed(small_disk: Path) -> None:
    with ExternalDataWriter(small_disk) as writer, pytest.raises(OutputError, match="No space left on device"):
        _write(writer, bytes(2_000_000))
