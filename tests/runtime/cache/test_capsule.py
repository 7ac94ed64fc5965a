"""Capsules: another engine, in this process or another, continues from the bytes, or refuses them."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.buffers import BuffersFactory, StateBuffers
from qwonnx.runtime.cache.capsule import (
    beginning_name,
    capsule_bytes,
    decode,
    encode,
    is_finite,
    max_capsule_bytes,
)
from qwonnx.runtime.cache.host_buffers import HostBuffers
from qwonnx.runtime.errors import CapsuleError, EngineClosedError
from tests.runtime.cache.row_content import in_bytes, random_segment, rows_of
from tests.runtime.counting_model import CountingModel, make
from tests.runtime.engine.engine_driver import GREEDY, SMALL, Received, drive, opened

KEY = StateSpec(1, "key", "past.1.key", "present.1.key", "int8", ("batch", 2, "max_model_len", 3))
CONV = StateSpec(0, "conv_state", "past.0.conv", "present.0.conv", "float32", ("batch", 5, 3))
STATES = (CONV, KEY)
ARTIFACT = "ab" * 32
SYSTEM = "you are a box. "


def written(*, compress: bool = False, make_buffers: BuffersFactory = HostBuffers) -> tuple[StateBuffers, bytes]:
    """Buffers whose row 1 holds seven tokens, and its capsule, of two segments."""
    buffers = make_buffers(STATES, 3, 10)
    segments = [random_segment(buffers, STATES, num_tokens, seed=num_tokens) for num_tokens in (4, 3)]
    buffers.restore(1, segments)
    return buffers, encode(ARTIFACT, STATES, range(7), buffers.to_host(segments), compress=compress)


@pytest.mark.parametrize("compress", [False, True])
def test_a_row_comes_back_as_it_was_and_its_size_was_known(make_buffers: BuffersFactory, compress: bool) -> None:
    buffers, data = written(compress=compress, make_buffers=make_buffers)
    if compress:
        assert len(data) <= max_capsule_bytes(STATES, 7)
    else:
        assert len(data) == capsule_bytes(STATES, 7)
    capsule = decode(data, ARTIFACT, STATES, 10)
    assert capsule.token_ids == tuple(range(7))
    buffers.restore(0, [buffers.from_host(7, capsule.parts)])
    zero, one = rows_of(buffers, {0: 7, 1: 7})
    assert zero == one


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8e4m3fn"])
def test_numbers_that_are_not_finite_are_found(dtype: str) -> None:
    sixteen = StateSpec(0, "conv_state", "past.0.conv", "present.0.conv", dtype, ("batch", 5, 3))
    states = (KEY, sixteen)
    largest = {
        "float32": b"\xff\xff\x7f\x7f",
        "float16": b"\xff\x7b",
        "bfloat16": b"\x7f\x7f",
        "float8e4m3fn": b"\xfe",
    }[dtype]
    infinite = {
        "float32": b"\x00\x00\x80\x7f",
        "float16": b"\x00\x7c",
        "bfloat16": b"\x80\xff",
        "float8e4m3fn": b"\xff",
    }[dtype]
    for number, finite in ((largest, True), (infinite, False)):
        parts = [memoryview(bytes(7 * 2 * 3)), memoryview(bytes(len(number) * 14) + number)]
        capsule = decode(encode(ARTIFACT, states, range(7), parts), ARTIFACT, states, 10)
        assert is_finite(capsule, states) == finite
        buffers = HostBuffers(states, 1, 10)
        buffers.restore(0, [buffers.from_host(7, capsule.parts)])
        assert in_bytes(buffers, buffers.copy_out(0, 0, 7)) == [bytes(part) for part in parts]


def test_the_format_is_what_it_says_to_the_byte() -> None:
    buffers, data = written()
    conv, key = in_bytes(buffers, buffers.copy_out(1, 0, 7))
    assert data == b"".join(
        (
            b"QWCAPSUL",
            struct.pack("<III12x", 2, 7, 0),
            bytes.fromhex(ARTIFACT),
            np.arange(7, dtype="<i4").tobytes().ljust(64, b"\0"),
            conv.ljust(64, b"\0"),
            key.ljust(64, b"\0"),
            hashlib.sha256(data[:-32]).digest(),
        )
    )
    compressed = written(compress=True)[1]
    assert compressed[:64] == data[:16] + b"\1" + data[17:64]
    planes = zstandard.decompress(compressed[64:-32])
    assert planes[:28] == bytes([*range(7), *bytes(21)])
    assert planes[64:124] == b"".join(conv[first::4] for first in range(4))
    assert planes[128:] == data[64 + 128 : -32]  # one byte a number: in their order


def test_parts_lie_in_the_data_on_whole_cache_lines() -> None:
    data = written()[1]
    capsule, start = decode(data, ARTIFACT, STATES, 10), np.frombuffer(data, np.uint8).ctypes.data
    for part in capsule.parts:
        assert (np.frombuffer(part, np.uint8).ctypes.data - start) % 64 == 0
        assert part.obj is data
        assert part.readonly


def test_equal_states_make_equal_capsules() -> None:
    (_, one), (_, other) = written(), written()
    assert one == other


def test_a_beginning_is_called_after_its_artifact_and_its_tokens() -> None:
    names = {beginning_name(artifact, tokens) for artifact in (ARTIFACT, "cd" * 32) for tokens in ([1], [1, 2], [256])}
    assert len(names) == 6
    assert beginning_name(ARTIFACT, [1]) == hashlib.sha256(bytes.fromhex(ARTIFACT) + b"\1\0\0\0").hexdigest()


@pytest.mark.parametrize("compress", [False, True])
@settings(deadline=None, max_examples=300)
@given(place=st.integers(0, 1000), flip=st.integers(1, 255))
def test_any_damaged_byte_is_noticed(compress: bool, place: int, flip: int) -> None:
    data = bytearray(written(compress=compress)[1])
    data[place % len(data)] ^= flip
    with pytest.raises(CapsuleError):
        decode(bytes(data), ARTIFACT, STATES, 10)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:-1], "size"),
        (lambda data: data[:20], "not a capsule"),
        (lambda data: b"", "not a capsule"),
        (lambda data: data + b"x", "size"),
        (lambda data: data[:12] + (1 << 31).to_bytes(4, "little") + data[16:], "at most 10"),
        (lambda data: data[:12] + bytes(4) + data[16:], "0 tokens"),
        (lambda data: data[:8] + b"\1" + data[9:], "version 1"),
        (lambda data: data[:16] + b"\2" + data[17:], "compression 2"),
        (lambda data: data[:32] + bytes(32) + data[64:], "another artifact"),
    ],
)
def test_what_cannot_be_read_says_why(change: Callable[[bytes], bytes], said: str) -> None:
    with pytest.raises(CapsuleError, match=said):
        decode(change(written()[1]), ARTIFACT, STATES, 10)


def with_digest(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (zstandard.compress(bytes(1 << 20)), "uncompressed size"),  # a kilobyte that would take a megabyte
        (zstandard.compress(bytes(191)), "uncompressed size"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(192)), "uncompressed size"),
        (zstandard.compress(bytes(192))[:-1], "cannot be decompressed"),
        (zstandard.compress(bytes(192)) + b"x", "cannot be decompressed"),
        (b"no frame", "cannot be decompressed"),
        (bytes(1000), "the size of the capsule"),
    ],
)
def test_a_frame_that_holds_anything_else_is_refused_before_memory_is_taken(frame: bytes, said: str) -> None:
    head = written(compress=True)[1][:64]
    with pytest.raises(CapsuleError, match=said):
        decode(with_digest(head + frame), ARTIFACT, STATES, 10)


def test_a_frame_of_the_right_size_that_breaks_off_is_refused() -> None:
    frame = bytearray(zstandard.compress(np.random.default_rng(1).bytes(100) + bytes(92)))
    frame[-4:] = b"\xff" * 4
    with pytest.raises(CapsuleError, match="cannot be decompressed"):
        decode(with_digest(written(compress=True)[1][:64] + bytes(frame)), ARTIFACT, STATES, 10)


@pytest.mark.parametrize("compress", [False, True])
def test_without_zstandard_compressed_ones_alone_are_refused(compress: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(compress=compress)[1]
    monkeypatch.setitem(sys.modules, "zstandard", None)
    if not compress:
        decode(data, ARTIFACT, STATES, 10)
        return
    for refused in (lambda: decode(data, ARTIFACT, STATES, 10), lambda: written(compress=True)):
        with pytest.raises(CapsuleError, match="--extras capsules"):
            refused()


def first_turn(model: CountingModel) -> tuple[list[int], bytes]:
    """A prompt that was answered, and the capsule of its beginning."""
    prompt = model.tokenizer.encode(SYSTEM + "one")
    with opened(model) as engine:
        engine.submit(prompt, GREEDY, Received(), snapshot_at=[len(model.tokenizer.encode(SYSTEM))])
        drive(engine)
        assert engine.save_capsule(prompt[:3]) is None
        data = engine.save_capsule(prompt)
    assert data is not None
    return prompt, data


def test_another_engine_goes_on_from_it(counting_model: CountingModel) -> None:
    _, data = first_turn(counting_model)
    prompt, received = counting_model.tokenizer.encode(SYSTEM + "two"), Received()
    with opened(counting_model) as engine:
        assert engine.load_capsule(data) == len(counting_model.tokenizer.encode(SYSTEM))
        assert engine.save_capsule(prompt) == data
        compressed = engine.save_capsule(prompt, compress=True)
        assert compressed is not None
        assert len(compressed) < len(data)
        assert engine.load_capsule(compressed) == engine.load_capsule(data)
        engine.submit(prompt, GREEDY, received)
        drive(engine)
    assert received.outputs[-1].num_cached_tokens == len(counting_model.tokenizer.encode(SYSTEM))
    assert received.tokens == counting_model.answer(prompt, 12)


def test_one_that_another_process_wrote_does_as_well(counting_model: CountingModel, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from qwonnx.runtime import Engine, RuntimeSettings, SamplingParams\n"
        "with Engine.open(sys.argv[1], RuntimeSettings(num_threads=1, max_model_len=64)) as engine:\n"
        "    prompt = engine.tokenizer.encode(sys.argv[2])\n"
        "    outputs = []\n"
        "    engine.submit(prompt, SamplingParams(temperature=0, max_tokens=2), outputs.append, snapshot_at=[5])\n"
        "    while not (outputs and outputs[-1].finish_reason): engine.step()\n"
        "    Path(sys.argv[3]).write_bytes(engine.save_capsule(prompt))\n"
    )
    out = tmp_path / "capsule"
    subprocess.run([sys.executable, "-c", program, counting_model.folder, SYSTEM, out], check=True, timeout=60)
    prompt, received = counting_model.tokenizer.encode(SYSTEM + "three"), Received()
    with opened(counting_model) as engine:
        assert engine.load_capsule(out.read_bytes()) == 5
        engine.submit(prompt, GREEDY, received)
        drive(engine)
    assert received.outputs[-1].num_cached_tokens == 5
    assert received.tokens == counting_model.answer(prompt, 12)


def test_one_of_another_artifact_or_with_no_room_for_it_changes_nothing(
    counting_model: CountingModel, tmp_path: Path
) -> None:
    _, data = first_turn(counting_model)
    with opened(make(tmp_path / "other", num_pairs=1)) as engine:
        with pytest.raises(CapsuleError, match="another artifact"):
            engine.load_capsule(data)
        assert engine.prefix_account().num_snapshots == 0
    with opened(counting_model, replace(SMALL, prefix_cache_bytes=100)) as engine:
        assert engine.load_capsule(data) == 0
    with (
        opened(counting_model, replace(SMALL, max_model_len=8)) as engine,
        pytest.raises(CapsuleError, match="at most"),
    ):
        engine.load_capsule(data)


def test_they_are_saved_and_loaded_while_the_engine_runs_and_not_once_it_is_closed(
    counting_model: CountingModel,
) -> None:
    prompt, data = first_turn(counting_model)
    with opened(counting_model) as engine:
        engine.start()
        done = threading.Event()

        def finish(output: object) -> None:
            if getattr(output, "finish_reason", None) is not None:
                done.set()

        engine.submit(prompt, replace(GREEDY, max_tokens=40), finish)
        for _ in range(20):
            assert engine.load_capsule(data) > 0
            assert engine.save_capsule(prompt) == data
        assert done.wait(20)
    with pytest.raises(EngineClosedError):
        engine.save_capsule(prompt)
