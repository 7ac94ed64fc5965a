"""False headers: every number of a safetensors file is checked before it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.export.checkpoint.safetensors_header import TensorEntry, read_header
from qwonnx.export.errors import TensorFormatError

pytestmark = pytest.mark.fast

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def write(path: Path, header: Any, data: bytes = bytes(32), *, length: int | None = None) -> Path:
    """A file with this header (JSON, or bytes as they are), which claims to be `length` bytes long."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(content) if length is None else length).to_bytes(8, "little") + content + data)
    return path


def refused(path: Path) -> str:
    with pytest.raises(TensorFormatError) as caught:
        read_header(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    assert message.endswith("; restore it")
    return message


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"__metadata__": {"format": "pt"}, "b": B, "a": A})
    start = path.stat().st_size - 32
    assert read_header(path) == [
        TensorEntry("a", "F32", (2, 3), start, 24),
        TensorEntry("b", "BF16", (4,), start + 24, 8),
    ]


def test_scalars_and_empty_tensors_are_tensors(tmp_path: Path) -> None:
    scalar = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
    empty = {"dtype": "F32", "shape": [0, 7], "data_offsets": [0, 0]}
    entries = read_header(write(tmp_path / "a", {"s": scalar, "e": empty}, bytes(4)))
    assert [(entry.name, entry.num_bytes) for entry in entries] == [("e", 0), ("s", 4)]


def test_types_of_quantised_checkpoints_are_known(tmp_path: Path) -> None:
    half = {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]}
    byte = {"dtype": "F8_E4M3", "shape": [5], "data_offsets": [3, 8]}
    assert len(read_header(write(tmp_path / "a", {"h": half, "b": byte}, bytes(8)))) == 2


@pytest.mark.parametrize("size", [0, 7, 8, 60])
def test_a_file_that_ends_within_its_header_is_truncated(tmp_path: Path, size: int) -> None:
    path = write(tmp_path / "a", {"a": A, "b": B})
    path.write_bytes(path.read_bytes()[:size])
    assert "truncated" in refused(path)


def test_a_file_that_ends_within_its_tensors_is_truncated(tmp_path: Path) -> None:
    assert "truncated (it has " in refused(write(tmp_path / "a", {"a": A, "b": B}, bytes(31)))


def test_a_header_length_beyond_the_file_is_not_allocated(tmp_path: Path) -> None:
    assert "truncated" in refused(write(tmp_path / "a", {"a": A, "b": B}, length=(1 << 64) - 1))


def test_a_header_beyond_the_formats_limit_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"a": A, "b": B}, length=200_000_000)
    with path.open("ab") as file:
        file.truncate(300_000_000)  # sparse: takes no space
    assert "a header of 200000000 bytes" in refused(path)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "a header of 0 bytes"),
        (b"[]", "not a JSON object"),
        (b'{"a": ', "header: "),
        (b'{"a": {}, "a": {}}', "appears twice"),
        ({"a": A, "b": 7}, "other fields"),
        ({"a": A, "b": {**B, "more": 1}}, "other fields"),
        ({"a": A, "b": {"dtype": "F32", "shape": [1]}}, "other fields"),
        ({"a": A, "b": {**B, "dtype": "Q4"}}, "unknown dtype 'Q4'"),
        ({"a": A, "b": {**B, "dtype": ["F32"]}}, "unknown dtype"),
        ({"a": A, "b": {**B, "shape": [-4]}}, "shape"),
        ({"a": A, "b": {**B, "shape": [4.0]}}, "shape"),
        ({"a": A, "b": {**B, "shape": [True, 4]}}, "shape"),
        ({"a": A, "b": {**B, "shape": [1] * 9 + [4]}}, "shape"),
        ({"a": A, "b": {**B, "shape": [1 << 63, 2]}}, "shape"),
        ({"a": A, "b": {**B, "shape": 4}}, "shape"),
        ({"a": A, "b": {**B, "data_offsets": [24]}}, "data_offsets"),
        ({"a": A, "b": {**B, "data_offsets": [32, 24]}}, "data_offsets"),
        ({"a": A, "b": {**B, "data_offsets": [-8, 0]}}, "data_offsets"),
        ({"a": A, "b": {**B, "data_offsets": [24, "32"]}}, "data_offsets"),
        ({"a": A, "b": {**B, "shape": [5]}}, "has 8 bytes"),
        # 2^61 x 8 elements of 2 bytes are 2^65 bytes: 0 in 64 bits.
        ({"a": A, "b": {**B, "shape": [1 << 61, 8], "data_offsets": [24, 24]}}, "has 0 bytes"),
        ({"a": A, "b": {**B, "data_offsets": [16, 24]}}, "overlaps"),
        ({"a": A, "b": {**B, "data_offsets": [0, 8]}}, "overlaps"),
        ({"a": A, "b": {**B, "data_offsets": [25, 33]}}, "leaves a gap"),
        ({"a": A}, "8 bytes follow the last tensor"),
    ],
)
def test_a_malformed_header_is_refused(tmp_path: Path, header: Any, reason: str) -> None:
    assert reason in refused(write(tmp_path / "a", header))


@given(data=st.data())
def test_whatever_a_damaged_file_says_its_tensors_lie_within_it(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "damaged", {"a": A, "b": B})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(
            st.sampled_from(b'0123456789"[]{},:-.e\x00\xff')
        )
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        entries = read_header(path)
    except TensorFormatError:
        return
    assert all(0 < entry.offset <= entry.offset + entry.num_bytes <= path.stat().st_size for entry in entries)
