"""The store: names find artifacts, half exports are not found, and removing touches nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qwonnx.handlers.models.artifact_path import artifact_path
from qwonnx.handlers.models.errors import ModelStoreError
from qwonnx.handlers.models.names import ModelName
from qwonnx.handlers.models.store import ModelStore
from qwonnx.handlers.models.stored_models import cache_folder
from tests.handlers.models.stored_models import put


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.setenv("QWONNX_CACHE", str(tmp_path / "cache"))
    return ModelStore()


def refused(store: ModelStore, text: str) -> str:
    with pytest.raises(ModelStoreError) as caught:
        store.resolve(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_folder_is_where_variables_say() -> None:
    assert cache_folder({"QWONNX_CACHE": "/models", "XDG_CACHE_HOME": "/xdg"}) == Path("/models")
    assert cache_folder({"XDG_CACHE_HOME": "/xdg"}) == Path("/xdg/qwonnx")
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache" / "qwonnx"


def test_a_model_is_found_by_its_names(store: ModelStore, counting_folder: Path) -> None:
    there = put(store, counting_folder, "qwen3.5-0.8b", source="Qwen/Qwen3.5-0.8B")
    put(store, counting_folder, "other")
    for name in ("qwen3.5-0.8b", "Qwen/Qwen3.5-0.8B", "qwen/qwen3.5-0.8b", "qwen3.5-0.8b:balanced", "QWEN3.5-0.8B"):
        assert store.resolve(name) == there.artifact == artifact_path(name)
    assert store.resolve("Qwen/Qwen3.5-0.8B@c0ffee") == there.artifact
    used = store.find("qwen3.5-0.8b").used
    assert used is not None
    assert store.find("other").used is None


def test_a_path_stays_a_path(store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen").mkdir()
    for text in ("qwen", "./missing", "/missing", "../x", "~/x"):
        assert artifact_path(text) == Path(text)
    assert artifact_path(Path("missing")) == Path("missing")


def test_an_unknown_name_says_what_to_do(store: ModelStore, counting_folder: Path) -> None:
    assert "run qwonnx pull OWNER/NAME" in refused(store, "qwen")
    assert "run qwonnx pull Qwen/Qwen3.5-0.8B" in refused(store, "Qwen/Qwen3.5-0.8B:best")
    put(store, counting_folder, "qwen3.5-0.8b")
    assert refused(store, "qwen3.5-0.8").endswith("did you mean qwen3.5-0.8b:balanced?")
    assert "is not pulled: use qwen3.5-0.8b:balanced, or run qwonnx pull" in refused(store, "qwen3.5-0.8b:best")
    put(store, counting_folder, "qwen3.5-0.8b", "best")
    assert refused(store, "qwen3.5-0.8b") == (
        "qwen3.5-0.8b may be qwen3.5-0.8b:balanced or qwen3.5-0.8b:best: say which"
    )


def test_a_half_export_is_listed_and_not_found(store: ModelStore, counting_folder: Path) -> None:
    put(store, None, "half")
    assert [model.is_complete for model in store.models()] == [False]
    assert "run qwonnx pull again" in refused(store, "half")
    put(store, counting_folder, "half", "best")
    assert store.resolve("half").parent.name == "half+best"


def test_what_is_no_model_is_left_alone(store: ModelStore, counting_folder: Path, tmp_path: Path) -> None:
    there = put(store, counting_folder, "model")
    (store.folder / "link+best").symlink_to(there.folder)
    (store.folder / "a file").write_text("")
    (store.folder / "renamed+best").mkdir()
    (store.folder / "renamed+best" / "model.json").write_text((there.folder / "model.json").read_text())
    for number, text in enumerate(("{", "[]", '{"name": 1}', "[" * 100_000)):
        (store.folder / f"bad{number}+best").mkdir()
        (store.folder / f"bad{number}+best" / "model.json").write_text(text)
    assert [str(model.name) for model in store.models()] == ["model:balanced"]


def test_removing_follows_no_link(store: ModelStore, counting_folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    model, other = put(store, counting_folder, "model"), put(store, counting_folder, "other")
    (model.folder / "folder").symlink_to(outside)
    (model.artifact / "file").symlink_to(outside / "kept")
    assert store.remove("model") > 1000
    assert (outside / "kept").read_text() == "x"
    assert [each.name for each in store.models()] == [other.name]
    assert [path.name for path in store.folder.iterdir()] == [other.folder.name]


def test_a_link_in_a_model_s_place_is_refused(store: ModelStore, tmp_path: Path) -> None:
    store.folder.mkdir(parents=True)
    (store.folder / "model+best").symlink_to(tmp_path)
    with pytest.raises(ModelStoreError, match="is a link"), store.exclusive(ModelName("model", None, "best")):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who maps a file")
def test_a_model_in_use_is_removed_only_by_force(store: ModelStore, counting_folder: Path) -> None:
    model = put(store, counting_folder, "model")
    program = (
        "import mmap, sys; file = open(sys.argv[1], 'rb'); kept = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ);"
        "print('ready', flush=True); sys.stdin.read(); print(len(kept[:]))"
    )
    command = [sys.executable, "-c", program, str(model.artifact / "manifest.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(ModelStoreError, match=f"in use by process {process.pid}"):
            store.remove("model")
        store.remove("model", even_if_used=True)
        assert int(process.communicate()[0]) == (counting_folder / "manifest.json").stat().st_size
    assert store.models() == []
