"""Conversations that continue at another instance: a prefix in the store is not computed again."""

from __future__ import annotations

import logging
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from qwonnx.export import ExportOptions
from qwonnx.handlers.chat import capsule_store
from qwonnx.handlers.chat.capsule_store import CapsuleStore
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.baking import bake
from qwonnx.runtime.cache.capsule import decode, encode
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import RequestOutput
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.text.chat_prompt import SystemPrompt
from tests.handlers.serving import MODEL, RUNTIME, Served, chat, serving, until

SYSTEM: Any = {"role": "system", "content": "You are a box of many words."}
SETTINGS = ServerSettings(shutdown_seconds=0.5)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "capsules")


def instance(folder: Path, url: str) -> Any:
    return serving(folder, settings=replace(SETTINGS, capsules=url))


def ask(served: Served, messages: list[Any], *, stream: bool = False) -> tuple[str, int]:
    """The answer, and the number of prompt tokens that were not computed again."""
    options: Any = {"model": MODEL, "messages": messages, "max_tokens": 6}
    with served.client() as client:
        if stream:
            chunks = list(
                client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
            )
            text, usage = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks[-1].usage
        else:
            whole = client.chat.completions.create(**options)
            text, usage = whole.choices[0].message.content or "", whole.usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens is not None
    return text, usage.prompt_tokens_details.cached_tokens


def saved(url: str) -> list[Path]:
    return sorted(Path(url).glob("*.capsule"))


def first_turn(folder: Path, url: str, *, stream: bool = False, compression: str = "none") -> list[Any]:
    """A conversation after its first turn, which another instance answered."""
    settings = replace(SETTINGS, capsules=url, capsule_compression=compression)
    with serving(folder, settings=settings) as served:
        text, cached = ask(served, [SYSTEM, *chat("What is in it?")], stream=stream)
        assert cached == 0
        until(lambda: len(saved(url)) == 2)
    return [SYSTEM, *chat("What is in it?"), {"role": "assistant", "content": text}]


@pytest.mark.parametrize("stream", [False, True])
def test_another_instance_goes_on_with_the_next_turn(counting_folder: Path, url: str, stream: bool) -> None:
    spoken = first_turn(counting_folder, url, stream=stream)
    messages = [*spoken, *chat("And?")]
    with instance(counting_folder, url) as served:
        text, cached = ask(served, messages, stream=stream)
        turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in spoken[:2])
        assert cached == len(served.engine.tokenizer.encode(turns.rstrip("\n")))
    with serving(counting_folder) as served:
        assert ask(served, messages) == (text, 0)


def test_compressed_ones_are_smaller_and_do_as_well_whatever_the_reader_writes(
    counting_folder: Path, url: str, tmp_path: Path
) -> None:
    plain, messages = str(tmp_path / "plain"), [*first_turn(counting_folder, url, compression="zstd"), *chat("And?")]
    first_turn(counting_folder, plain)
    for compressed, other in zip(saved(url), saved(plain), strict=True):
        assert compressed.name == other.name
        assert compressed.stat().st_size < other.stat().st_size
    answers = []
    for place in (url, plain):
        with instance(counting_folder, place) as served:
            answers.append(ask(served, messages))
    assert answers[0] == answers[1]
    assert answers[0][1] > 0


def test_what_the_artifact_brings_itself_is_not_written(counting_folder: Path, url: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(counting_folder, tmp_path / "artifact"))
    (baked,) = bake(folder, [SystemPrompt([SYSTEM], [])], RUNTIME)
    with instance(folder, url) as served:
        text, cached = ask(served, [SYSTEM, *chat("What is in it?")])
        until(lambda: len(saved(url)) == 1)
        spoken = [SYSTEM, *chat("What is in it?"), {"role": "assistant", "content": text}, *chat("And?")]
        assert ask(served, spoken)[1] > cached
        until(lambda: len(saved(url)) == 2)  # one for each turn, none for the system's
    assert cached == baked.num_tokens
    with instance(folder, url) as served:
        assert ask(served, [*spoken, {"role": "assistant", "content": "x"}, *chat("Why?")])[1] > baked.num_tokens
        assert ask(served, [SYSTEM, *chat("Why?")])[1] == baked.num_tokens


def test_another_chat_with_the_same_system_text_goes_on_after_it(counting_folder: Path, url: str) -> None:
    first_turn(counting_folder, url)
    with instance(counting_folder, url) as served:
        _, cached = ask(served, [SYSTEM, *chat("Why?")])
        assert cached == len(served.engine.tokenizer.encode(f"<|im_start|>system\n{SYSTEM['content']}<|im_end|>"))
        assert ask(served, chat("Why?"))[1] == 0


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(1 << 16))


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("damage", [_cut, _flip, _grow])
def test_damaged_ones_are_not_used_and_the_prompt_is_read(
    counting_folder: Path, url: str, damage: Any, compression: str, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [*first_turn(counting_folder, url, compression=compression), *chat("And?")]
    for path in saved(url):
        damage(path)
    with instance(counting_folder, url) as served, caplog.at_level(logging.WARNING):
        text, cached = ask(served, messages)
        until(lambda: len(saved(url)) == 2)  # the damaged ones are gone, these are of this turn
    assert cached == 0
    assert caplog.text.count("set aside") == 2
    with instance(counting_folder, url) as served:
        assert ask(served, messages)[1] > 0
    with serving(counting_folder) as served:
        assert ask(served, messages) == (text, 0)


def test_a_store_that_fails_costs_nothing_but_time_and_shows_no_secret(
    counting_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no bucket for key SECRET")

    files = fsspec.filesystem("memory")
    for name in ("size", "exists"):
        monkeypatch.setattr(type(files), name, fail)
    with instance(counting_folder, "memory://capsules") as served, caplog.at_level(logging.WARNING):
        assert ask(served, chat("Why?"))[1] == 0
        until(lambda: caplog.text.count("capsule was not") == 2)
    assert "SECRET" not in caplog.text


def test_a_store_that_does_not_answer_is_left_alone(
    counting_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hung network file system: the system call never returns."""
    asked, never = [], threading.Event()

    def hang(*arguments: object, **options: object) -> None:
        asked.append(arguments)
        never.wait()

    monkeypatch.setattr(capsule_store, "_DEADLINE_SECONDS", 0.3)
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "size", hang)
    try:
        with instance(counting_folder, "memory://capsules") as served, caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert ask(served, chat("Why?"))[0]
        assert len(asked) == 1
        assert "the store is left alone" in caplog.text
    finally:
        never.set()


def test_a_capsule_that_fails_in_use_is_set_aside_and_written_again(
    export_tiny: Callable[[ExportOptions], Artifact], url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Numbers on which the model overflows, with the right digest: as if another program had written them."""
    artifact = export_tiny(ExportOptions(weights="fp32"))
    settings = replace(SETTINGS, capsules=url, model_name=MODEL)
    with serving(artifact.folder, settings=settings) as served:
        ask(served, [SYSTEM, *chat("What is in it?")])
        until(lambda: len(saved(url)) == 2)
    states = artifact.decoder.states
    for path in saved(url):
        good = decode(path.read_bytes(), artifact.id, states, 512)
        parts = [np.full(len(part) // 4, 3e38, np.float32).data.cast("B") for part in good.parts]
        path.write_bytes(encode(artifact.id, states, good.token_ids, parts))
    used = max(saved(url), key=lambda path: path.stat().st_size)  # the longest is the one that a prompt continues
    bad = used.read_bytes()
    with serving(artifact.folder, settings=settings) as served, caplog.at_level(logging.WARNING):
        text, cached = ask(served, [SYSTEM, *chat("What is in it?")])
        assert cached == 0
        until(lambda: "set aside" in caplog.text)
        again, _ = ask(served, [SYSTEM, *chat("What is in it?")])
        until(lambda: used.exists() and used.read_bytes() != bad)
    assert again == text
    assert [path.name for path in Path(url).glob("*.failed")] == [f"{used.name}.failed"]
    with serving(artifact.folder, settings=replace(SETTINGS, model_name=MODEL)) as served:
        assert ask(served, [SYSTEM, *chat("What is in it?")]) == (text, 0)


def test_each_key_has_its_own_capsules_and_prefixes_unless_they_are_shared(
    counting_folder: Path, url: str, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a: first\nb: second\n")
    keys.chmod(0o600)

    def cached_tokens(served: Served, key: str) -> int:
        with served.client(key) as client:
            whole = client.chat.completions.create(
                model=MODEL, messages=[SYSTEM, *chat("What is in it?")], max_tokens=2
            )
        assert whole.usage is not None
        assert whole.usage.prompt_tokens_details is not None
        return whole.usage.prompt_tokens_details.cached_tokens or 0

    settings = replace(SETTINGS, capsules=url, api_keys=str(keys))
    with serving(counting_folder, settings=settings) as served:
        assert cached_tokens(served, "first") == 0
        until(lambda: len(saved(url)) == 2)
        assert (cached_tokens(served, "second"), cached_tokens(served, "first") > 0) == (0, True)
        until(lambda: len(saved(url)) == 4)
    with serving(counting_folder, settings=settings) as served:
        assert cached_tokens(served, "second") > 0
    with serving(counting_folder, settings=replace(settings, share_prefixes=True)) as served:
        assert (cached_tokens(served, "first"), cached_tokens(served, "second") > 0) == (0, True)


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://conversations"
    fsspec.filesystem("memory").store.clear()


def test_any_file_system_of_fsspec_will_do(counting_folder: Path, memory: str) -> None:
    with instance(counting_folder, memory) as served:
        ask(served, chat("Why?"))
        until(lambda: len(fsspec.filesystem("memory").store) == 1)
    with serving(counting_folder, runtime=RUNTIME, settings=replace(SETTINGS, capsules=memory)) as served:
        assert ask(served, chat("Why?"))[1] > 0


def test_compression_without_its_package_is_refused_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capsule_store, "find_spec", lambda name: None)
    CapsuleStore(url)
    with pytest.raises(SettingsError, match=r"zstandard.*--extras capsules"):
        CapsuleStore(url, compress=True)


@pytest.mark.parametrize("url", ["nonsense://somewhere", "s3://bucket/folder"])
def test_a_place_that_cannot_be_is_refused_at_once(url: str) -> None:
    with pytest.raises(SettingsError, match="capsules cannot be kept there"):
        CapsuleStore(url)


def test_little_time_for_a_continuation_says_nothing_about_the_store(
    counting_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CapsuleStore(str(tmp_path))
    write = store._files.write

    def slow_write(name: str, data: bytes) -> None:
        time.sleep(0.2)
        write(name, data)

    monkeypatch.setattr(store._files, "write", slow_write)
    with Engine.open(counting_folder, RUNTIME) as engine:
        prompt = engine.tokenizer.encode("a prompt and more")
        outputs: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        engine.start()
        engine.submit(prompt, SamplingParams(max_tokens=1), outputs.put, snapshot_at=[5])
        outputs.get(timeout=10)
        assert store.put(engine, "one", prompt[:5], "", seconds=0.05) is None
        assert store.put(engine, "two", prompt[:5], "", seconds=5.0) is not None
    assert store.take("two", 1 << 20) is not None
    assert store.take("two", 1 << 20) is None
