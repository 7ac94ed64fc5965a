"""Baked prefixes: an engine continues from a file or ignores it; its answers are right in both cases."""

from __future__ import annotations

import logging
import mmap
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.cache import baked_prefixes
from qwonnx.runtime.cache.baked_prefixes import load, prefix_files, prefix_path, remove_others, write_prefix
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import CapsuleError
from tests.runtime.counting_model import CountingModel, make
from tests.runtime.engine.engine_driver import GREEDY, SMALL, Received, drive, opened

SYSTEM = "you are a box. "
OTHER = "you are a bag, "


@pytest.fixture
def model(counting_model: CountingModel, tmp_path: Path) -> CountingModel:
    """A separate model, without baked prefixes."""
    return replace(counting_model, folder=Path(shutil.copytree(counting_model.folder, tmp_path / "artifact")))


def capsule_of(model: CountingModel, text: str, *, compress: bool = False) -> bytes:
    tokens = model.tokenizer.encode(text)
    with opened(model) as engine:
        engine.submit([*tokens, 70], GREEDY, Received(), snapshot_at=[len(tokens)])
        drive(engine)
        data = engine.save_capsule(tokens, compress=compress)
    assert data is not None
    return data


def path_of(model: CountingModel, text: str) -> Path:
    return prefix_path(open_artifact(model.folder), model.tokenizer.encode(text))


def bake(model: CountingModel, *texts: str) -> list[Path]:
    paths = [path_of(model, text) for text in texts]
    for path, text in zip(paths, texts, strict=True):
        write_prefix(path, capsule_of(model, text))
    return paths


def ask(engine: Engine, model: CountingModel, text: str, *snapshot_at: int) -> int:
    """Answer, check the answer, and return how many tokens were not computed."""
    prompt, received = model.tokenizer.encode(text), Received()
    engine.submit(prompt, GREEDY, received, snapshot_at=snapshot_at)
    drive(engine)
    assert received.tokens == model.answer(prompt, 12)
    return received.outputs[-1].num_cached_tokens


@pytest.mark.parametrize("prefix_cache_bytes", [0, 1 << 20])
def test_a_new_engine_goes_on_from_it_whatever_its_budget(model: CountingModel, prefix_cache_bytes: int) -> None:
    bake(model, SYSTEM, SYSTEM + "and more. ", OTHER)
    with opened(model, replace(SMALL, prefix_cache_bytes=prefix_cache_bytes)) as engine:
        for _ in range(2):
            for text in (SYSTEM, OTHER, SYSTEM + "and more. "):
                assert ask(engine, model, text + "why?") == len(model.tokenizer.encode(text))
        assert ask(engine, model, "why?") == 0
        account = engine.prefix_account()
    assert (account.num_permanent, account.used_bytes) == (3, 0)


def test_parts_lie_in_the_mapped_file_on_whole_cache_lines(model: CountingModel) -> None:
    bake(model, SYSTEM)
    (capsule,) = load(open_artifact(model.folder), 63)
    assert len(capsule.parts) == len(open_artifact(model.folder).decoder.states)
    for part in capsule.parts:
        assert isinstance(part.obj, mmap.mmap)
        assert np.frombuffer(part, np.uint8).ctypes.data % 64 == 0
        assert part.readonly


def test_eviction_takes_snapshots_and_never_what_is_baked(model: CountingModel) -> None:
    bake(model, SYSTEM)
    length = len(model.tokenizer.encode(SYSTEM))
    with opened(model) as engine:
        ask(engine, model, "aaaaaaaa", 4)
        one = engine.prefix_account().used_bytes
    with opened(model, replace(SMALL, prefix_cache_bytes=one)) as engine:
        assert ask(engine, model, SYSTEM + "bcde?", length, length + 4) == length
        assert ask(engine, model, SYSTEM + "bcde!") == length + 4
        for letter in "xyz":
            ask(engine, model, letter * 8, 4)
        assert ask(engine, model, "z" * 9) == 4
        assert ask(engine, model, SYSTEM + "bcde.") == length
        assert engine.prefix_account().used_bytes <= one


def test_a_chat_goes_on_from_baked_prefix_snapshot_and_capsule_together(model: CountingModel) -> None:
    bake(model, SYSTEM)
    lengths = [len(model.tokenizer.encode(text)) for text in (SYSTEM, SYSTEM + "one. ", SYSTEM + "one. two. ")]
    with opened(model) as engine:
        assert ask(engine, model, SYSTEM + "one. x", lengths[1]) == lengths[0]  # baked; a snapshot after it
        assert ask(engine, model, SYSTEM + "one. two. x", lengths[2]) == lengths[1]
        data = engine.save_capsule(model.tokenizer.encode(SYSTEM + "one. two. "))
        assert data == engine.save_capsule(model.tokenizer.encode(SYSTEM + "one. two. x"))
    assert data is not None
    with opened(model) as engine:
        assert engine.kept_tokens(model.tokenizer.encode(SYSTEM + "one. two. three")) == lengths[0]
        assert engine.load_capsule(data) == lengths[2]
        assert ask(engine, model, SYSTEM + "one. two. three") == lengths[2]
        assert ask(engine, model, SYSTEM + "one. three", lengths[1]) == lengths[0]
        assert ask(engine, model, SYSTEM + "one. four") == lengths[1]
    shutil.rmtree(model.folder / "prefixes")
    with opened(model) as engine:  # the capsule holds what was baked
        assert engine.load_capsule(data) == lengths[2]
        assert ask(engine, model, SYSTEM + "one. two. four") == lengths[2]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The logged records, without informational ones."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _grow(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # sparse: hashing it would take hours


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def _dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _other_name(path: Path) -> None:
    path.rename(path.with_name("ab" * 32 + ".capsule"))


def _no_name(path: Path) -> None:
    path.rename(path.with_name("system.capsule"))


def _linked_folder(path: Path) -> None:
    path.parent.rename(path.parent.parent / "elsewhere")
    path.parent.symlink_to("elsewhere")


def _file_for_folder(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_flip, "sha256"),
        (_cut, "size"),
        (_grow, "GB together"),
        (_empty, "cannot be mapped"),
        (_link, "links are not followed"),
        (_dangling_link, "links are not followed"),
        (_folder, "not a regular file"),
        (_pipe, "not a regular file"),
        (_other_name, "does not match its tokens"),
        (_no_name, "its name is not"),
        (_linked_folder, "is not followed"),
        (_file_for_folder, "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_told_and_the_prompt_is_computed(
    model: CountingModel, damage: Callable[[Path], None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = bake(model, SYSTEM)
    damage(path)
    with opened(model) as engine:
        assert ask(engine, model, SYSTEM + "why?") == 0
    (warning,) = warnings_in(caplog)
    assert said in warning
    assert "is not used" in warning


def test_one_of_another_artifact_or_too_long_is_left_and_the_others_are_used(
    model: CountingModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = make(tmp_path / "foreign", num_pairs=1)
    bake(model, SYSTEM, SYSTEM + "x" * 30)
    write_prefix(path_of(model, OTHER), capsule_of(foreign, OTHER))
    with opened(model, replace(SMALL, max_model_len=40)) as engine:
        assert ask(engine, model, OTHER + "why?") == 0
        assert ask(engine, model, SYSTEM + "why?") == len(model.tokenizer.encode(SYSTEM))
    assert sorted("another artifact" in text for text in warnings_in(caplog)) == [False, True]
    assert sorted("raise max_model_len" in text for text in warnings_in(caplog)) == [False, True]


def test_the_number_of_files_and_their_bytes_are_bounded(
    model: CountingModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = bake(model, SYSTEM, OTHER)
    size = paths[0].stat().st_size
    for name, value in (("MAX_FILES", 1), ("MAX_TOTAL_BYTES", 2 * size - 1)):
        with monkeypatch.context() as patch:
            patch.setattr(baked_prefixes, name, value)
            assert len(load(open_artifact(model.folder), 63)) == 1
            with pytest.raises(CapsuleError, match="is full"):
                bake(model, "a third one")
    monkeypatch.setattr(baked_prefixes, "MAX_FILES", 2)
    write_prefix(paths[0], paths[0].read_bytes())  # in its own place
    assert len(load(open_artifact(model.folder), 63)) == 2


def test_a_file_appears_whole_or_not_at_all(model: CountingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path = capsule_of(model, SYSTEM), path_of(model, SYSTEM)

    def fail(descriptor: int) -> None:
        assert not path.exists()
        assert list(prefix_files(open_artifact(model.folder), 63)) == []
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            write_prefix(path, data)
    assert list(path.parent.iterdir()) == []
    write_prefix(path, data)
    assert [each.read_bytes() for each in path.parent.iterdir()] == [data]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_others_are_removed_with_what_was_left_of_them_and_links_are_not_followed(
    model: CountingModel, tmp_path: Path
) -> None:
    artifact = open_artifact(model.folder)
    assert remove_others(artifact, []) == []
    kept, gone = bake(model, SYSTEM, OTHER)
    left = kept.with_name(f".{gone.name}.1234")
    left.write_bytes(b"half")
    assert sorted(remove_others(artifact, [kept])) == sorted([gone, left])
    assert list(kept.parent.iterdir()) == [kept]
    kept.parent.rename(tmp_path / "elsewhere")
    kept.parent.symlink_to(tmp_path / "elsewhere")
    for refused in (lambda: remove_others(artifact, []), lambda: write_prefix(kept, b"")):
        with pytest.raises(CapsuleError, match="is a link"):
            refused()
    assert (tmp_path / "elsewhere" / kept.name).exists()
