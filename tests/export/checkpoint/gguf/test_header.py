"""Headers of GGUF files: what is refused, and that damage never does anything else than be refused."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest

from qwonnx.export.checkpoint.gguf.header import GgufFile, read_gguf
from qwonnx.export.errors import CheckpointError
from qwonnx.export.planning.check import check_checkpoint
from tests.checkpoints import write_tiny
from tests.checkpoints.gguf_files import gguf_bytes, write_gguf

pytestmark = pytest.mark.fast

TENSOR = ("F32", (2, 4), struct.pack("<8f", *range(8)))


def read(path: Path, content: bytes) -> GgufFile:
    (path / "m.gguf").write_bytes(content)
    return read_gguf(path / "m.gguf")


def refusal(path: Path, content: bytes) -> str:
    with pytest.raises(CheckpointError) as raised:
        read(path, content)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def one(**changes: Any) -> bytes:
    """A file with one tensor; changes are of its parts."""
    parts: dict[str, Any] = {
        "name": b"t",
        "sizes": (4, 2),
        "type": 0,
        "offset": 0,
        "version": 3,
        "entries": b"",
        "n": 0,
    }
    parts |= changes
    sizes = parts["sizes"]
    name = struct.pack("<Q", len(parts["name"])) + parts["name"]
    tensor = name + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, parts["type"], parts["offset"])
    header = b"GGUF" + struct.pack("<IQQ", parts["version"], 1, parts["n"]) + parts["entries"] + tensor
    whole: bytes = header + b"\0" * (-len(header) % 32) + TENSOR[2]
    return whole


def entry(key: bytes, kind: int, content: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + content


def test_metadata_and_tensors_are_read(tmp_path: Path) -> None:
    metadata = {"a": 1, "b": "text", "c": [1, 2, 3], "d": ["x", "yz"], "e": True, "f": 0.5, "g": [True, False]}
    found = read(tmp_path, gguf_bytes(metadata, {"t": TENSOR}))
    assert {key: found.metadata[key] for key in "abef"} == {"a": 1, "b": "text", "e": True, "f": 0.5}
    assert [found.array(key) for key in "cdga"] == [[1, 2, 3], ["x", "yz"], [True, False], None]
    tensor = found.tensors["t"]
    assert (tensor.shape, tensor.type.name, tensor.num_rows, tensor.row_bytes) == ((2, 4), "F32", 2, 16)
    assert (tmp_path / "m.gguf").read_bytes()[tensor.offset :][:32] == TENSOR[2]


def test_a_sound_file_of_this_test_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, one()).tensors["t"].num_bytes == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin with GGUF"),
        (b"GGUF", "is truncated"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (one(version=1), "of version 1, which is not supported"),
        (one(version=3 << 24), "in big-endian order"),
        (one(type=23), "'t' is of the type IQ4_XS, which is not supported: use a file with F32, F16"),
        (one(type=99), "'t' is of the type number 99"),
        (one(type=12), "has rows of 4 values in blocks of 256"),
        (one(sizes=(4, 0)), "has the shape [0, 4]"),
        (one(sizes=(4, 1 << 60)), "has the shape"),
        (one(sizes=(4, 3)), "is truncated (it has"),
        (one(sizes=(1,) * 5), "has 5 dimensions"),
        (one(offset=32), "does not follow the tensor before it"),
        (one(name=b"\xff"), "a string that is not UTF-8"),
        (one(n=1 << 40), "entries of metadata"),
        (one(n=1, entries=entry(b"k", 8, struct.pack("<Q", 1 << 62))), "a string of"),
        (one(n=1, entries=entry(b"k", 9, struct.pack("<IQ", 4, 1 << 40))), "an array of"),
        (one(n=1, entries=entry(b"k", 9, struct.pack("<IQ", 9, 1))), "an array of 1 items of type 9"),
        (one(n=1, entries=entry(b"k", 9, struct.pack("<IQ", 4, 1 << 20))), "is truncated"),
        (one(n=1, entries=entry(b"k", 77, b"")), "has the unknown type 77"),
        (one(n=1, entries=entry(b"k", 6, struct.pack("<f", float("nan")))), "is not a number"),
        (one(n=1, entries=entry(b"k", 7, b"\x02")), "is neither true nor false"),
        (one(n=2, entries=2 * entry(b"k", 0, b"\x02")), "it has 'k' twice"),
        (one(n=1, entries=entry(b"general.alignment", 4, struct.pack("<I", 3))), "general.alignment is 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_malformed_file_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refusal(tmp_path, content)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    content = gguf_bytes({}, {"t": TENSOR, "u": TENSOR})
    assert "it has the tensor 't' twice" in refusal(
        tmp_path, content.replace(b"\x01" + b"\0" * 7 + b"u", b"\x01" + b"\0" * 7 + b"t")
    )


def test_damaged_headers_are_refused_or_read_and_nothing_else(tmp_path: Path) -> None:
    layers = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "num_experts": 2}
    layers |= {"num_experts_per_tok": 1}
    source = write_tiny(tmp_path / "tiny", vision=False, text_overrides=layers)
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    path = write_gguf(source, tmp_path / "m.gguf", "Q8_0")
    sound = path.read_bytes()
    assert check_checkpoint(str(path)).refusal is None
    metadata_end = sound.index(b"tokenizer.ggml.tokens")
    infos = sound.index(b"token_embd.weight")
    generator = random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(sound)
        for _ in range(generator.choice((1, 1, 4))):
            low, high = generator.choice(((0, metadata_end), (infos, infos + 3000)))
            place = generator.randrange(low, high)
            damaged[place] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)))
        path.write_bytes(damaged if generator.random() < 0.8 else damaged[: generator.randrange(len(damaged))])
        report = check_checkpoint(str(path))
        refused += report.refusal is not None
        assert "\n" not in (report.refusal or "")
    assert refused > 20
