"""PyTorch files: the tensors that were saved, nothing of the file is run, and damage is only refused."""

from __future__ import annotations

import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.safetensors_header import TensorEntry
from qwonnx.export.checkpoint.stored_file import LocalFile
from qwonnx.export.checkpoint.torch_file import read_torch_file
from qwonnx.export.errors import CheckpointError, TensorFormatError

pytestmark = pytest.mark.fast

NAME = "pytorch_model.bin"


def saved(folder: Path, content: object, **options: Any) -> Path:
    torch.save(content, folder / NAME, **options)
    return folder / NAME


def refusal(path: Path) -> str:
    with pytest.raises(TensorFormatError) as raised:
        read_torch_file(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def with_pickle(folder: Path, content: bytes) -> Path:
    """A file with this pickle in the place of a state dict's."""
    with zipfile.ZipFile(folder / NAME, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return folder / NAME


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_values_are_those_that_were_saved(tmp_path: Path, protocol: int) -> None:
    base = torch.arange(24.0).view(4, 6)
    tensors = {
        "bf16": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "half": torch.randn(7).half(),
        "scalar": torch.tensor(2.5),
        "int": torch.arange(5, dtype=torch.int32),
        "fp8": torch.randn(8).to(torch.float8_e4m3fn),
        "base": base,
        "its rows": base[1:3],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "gap of size one": torch.empty_strided((1, 3), (99, 1)).fill_(1.0),
    }
    path = saved(tmp_path, tensors, pickle_protocol=protocol)
    checkpoint = Checkpoint({entry.name: (LocalFile(path), entry) for entry in read_torch_file(path)})
    assert checkpoint.names == tensors.keys()
    for name, tensor in tensors.items():
        found = checkpoint.read(name)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found.view(-1).view(torch.uint8), tensor.detach().reshape(-1).view(torch.uint8)), name


def test_a_modules_own_state_dict_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    path = saved(tmp_path, module.state_dict())  # an OrderedDict with notes beside its items
    assert {entry.name for entry in read_torch_file(path)} == module.state_dict().keys()


class Harmful:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._reduced = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._reduced


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch harmed",), "posix.system"),
        (eval, ("open('harmed', 'w')",), "__builtin__.eval"),
        (getattr, (os, "system"), ""),
        (torch.load, ("x",), "torch.serialization.load"),
        (torch.hub.load, ("x", "y"), "torch.hub.load"),
    ],
)
def test_code_in_a_file_is_refused_by_name_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Any, arguments: Any, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        content = pickle.dumps({"a": Harmful(function, *arguments)}, protocol=2)
    except TypeError:  # a module has no pickle
        content = b"\x80\x02c__builtin__\ngetattr\ncos\nsystem\nX\x01\x00\x00\x00a\x86R."
        named = "__builtin__.getattr"
    message = refusal(with_pickle(tmp_path, content))
    assert f"its pickle names '{named}', which no tensor needs" in message
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its pickle is malformed"),
        (b"\x80\x02}", "its pickle is malformed"),
        (b"\x80\x02.", "its pickle is malformed"),
        (b"\x80\x02].", "something else than tensors by name"),
        (b"\x80\x02}K\x01K\x02s.", "something else than tensors by name"),
        (b"\x80\x02}]K\x02s.", "a key that is neither"),
        (b"\x80\x02}(K\x01u.", "a key without a value"),
        (b"\x80\x02}h\x05.", "its pickle is malformed"),
        (b"\x80\x02u.", "its pickle is malformed"),
        (b"cos\nsystem\n(X\x01\x00\x00\x00atR.", "names 'os.system'"),
        (b"(X\x01\x00\x00\x00aios\nsystem\n.", "the operation INST"),
        (b"\x80\x02cos\nsystem\n)\x81.", "the operation NEWOBJ"),
        (b"\x80\x02]q\x00h\x00h\x00Q.", "its pickle has a list in the place of a tuple"),
        (
            b"\x80\x02(X\x07\x00\x00\x00storagectorch\nTensor\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.",
            "'torch.Tensor'",
        ),
        (b"\x80\x02}\x94\x8c\xff.", "its pickle is malformed"),
        (b"\x80\x04\x8a\xff\x01.", "its pickle is malformed"),
    ],
)
def test_a_malformed_pickle_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refusal(with_pickle(tmp_path, content))


def test_sizes_beyond_a_storage_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.zeros(64)}, pickle_protocol=2)
    content = path.read_bytes()
    place = content.index(b"K\x40\x85")  # the shape (64,)
    path.write_bytes(content[:place] + b"K\x41\x85" + content[place + 3 :])
    assert "sound PyTorch file" in refusal(path)  # the archive's checksum shows it first
    rewritten = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(rewritten, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"K\x40\x85", b"K\x41\x85"))
    path.write_bytes(rewritten.getvalue())
    assert "'a' of shape [65] ends after its storage" in refusal(path)


def test_a_storage_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.zeros(4)})
    rewritten = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(rewritten, "w") as new:
        for name in old.namelist():
            if "/data/" not in name:
                new.writestr(name, old.read(name))
    path.write_bytes(rewritten.getvalue())
    assert "it has no bytes of 'a'" in refusal(path)


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.zeros(4)})
    rewritten = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(rewritten, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    path.write_bytes(rewritten.getvalue())
    assert "its records are compressed" in refusal(path)


def test_damaged_files_are_refused_or_read_and_nothing_else(tmp_path: Path) -> None:
    path = saved(tmp_path, {f"t{number}": torch.full((2, 3), float(number)) for number in range(4)})
    sound = path.read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(sound)
        for _ in range(generator.choice((1, 2, 8))):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged if generator.random() < 0.9 else damaged[: generator.randrange(len(damaged))])
        refused += not _is_read(path)
    assert refused > 40


def test_damaged_pickles_are_refused_or_read_and_nothing_else(tmp_path: Path) -> None:
    path = saved(tmp_path, {f"t{number}": torch.full((2, 3), float(number)) for number in range(4)})
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in records if name.endswith("data.pkl"))
    generator = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(records[name])
        for _ in range(generator.choice((1, 2, 8))):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        with zipfile.ZipFile(path, "w") as archive:
            for other, content in records.items():
                archive.writestr(other, bytes(damaged) if other == name else content)
        refused += not _is_read(path)
    assert refused > 100


def _is_read(path: Path) -> bool:
    """Whether a damaged file is read; every range is then within it."""
    try:
        entries: list[TensorEntry] = read_torch_file(path)
    except CheckpointError as error:
        return "\n" in str(error)
    size = path.stat().st_size
    assert all(0 <= entry.offset <= entry.offset + entry.num_bytes <= size for entry in entries)
    return True
