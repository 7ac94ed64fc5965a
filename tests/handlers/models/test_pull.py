"""Pulling: from a local hub into the store, on after a kill, and in the recipe that suits the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qwonnx.export.planning.source import open_source
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.handlers.models import fitting
from qwonnx.handlers.models.errors import ModelStoreError
from qwonnx.handlers.models.fitting import Machine, fitting_recipe
from qwonnx.handlers.models.store import ModelStore
from qwonnx.handlers.models.stored_models import Record
from qwonnx.runtime.artifact.folder import open_artifact
from tests.checkpoints import write_tiny
from tests.checkpoints.published import PUBLISHED
from tests.checkpoints.tiny import write_json
from tests.export.checkpoint.hub_server import COMMIT, REPOSITORY, HubServer, hub_server
from tests.handlers.models.stored_models import put

_GB = 10**9

# Dies without a chance to clean up, as soon as weights are written.
_KILLED = """
import os, signal, sys
from qwonnx.handlers.models.store import ModelStore
def show(progress):
    if progress.stage == "weights" and progress.done_bytes:
        os.kill(os.getpid(), signal.SIGKILL)
ModelStore().add(sys.argv[1], on_progress=show)
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with a tiny checkpoint; the hub's cache and the store are empty."""
    import huggingface_hub.constants as constants

    folder = write_tiny(tmp_path / "repository", num_shards=2)
    with hub_server(folder) as server:
        files = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}/")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "".join((server.url, *files[1:])))
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_ENDPOINT", server.url)  # of child processes
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("QWONNX_CACHE", str(tmp_path / "cache"))
        yield server


def test_a_pull_that_is_killed_goes_on(hub: HubServer) -> None:
    store = ModelStore()
    killed = subprocess.run([sys.executable, "-c", _KILLED, REPOSITORY], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    (half,) = store.models()
    assert not half.is_complete
    with pytest.raises(ModelStoreError, match="not pulled to its end"):
        store.resolve("tiny")
    sent = dict(hub.sent)

    resumed, choices = [], list[Record]()
    made = store.add(
        REPOSITORY,
        on_progress=lambda progress: resumed.append(progress.resumed_bytes),
        on_choice=choices.append,
    )
    assert (str(made.name), made.record.commit, made.record.source) == ("tiny:balanced", COMMIT, REPOSITORY)
    assert "balanced is the usual recipe: it takes" in choices[0].why
    assert max(resumed) > 0
    assert {name: size for name, size in hub.sent.items() if name.endswith(".safetensors")} == {
        name: size for name, size in sent.items() if name.endswith(".safetensors")
    }
    assert store.resolve(REPOSITORY) == made.artifact == store.resolve("tiny")
    assert open_artifact(made.artifact, verify=True).manifest.source.checkpoint == REPOSITORY
    assert sorted(os.listdir(made.folder)) == ["artifact", "lock", "model.json", "used"]

    begun: list[Record] = []
    notes: list[str] = []
    assert store.add(REPOSITORY, on_choice=begun.append, on_note=notes.append).name == made.name
    assert notes == []
    store.write_record(made.name, replace(made.record, commit="f" * 40))
    store.add(REPOSITORY, on_note=notes.append)
    assert notes == [f"{REPOSITORY} has a newer commit, {COMMIT[:8]}, than the model, ffffffff"]
    assert store.add(f"{REPOSITORY}@main", "balanced", on_choice=begun.append).name.revision == "main"
    assert [record.revision for record in begun] == ["main"]


def test_the_disk_has_to_hold_the_download_and_the_model(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, choices = ModelStore(), list[Record]()
    weights = sum(path.stat().st_size for name, path in hub.files.items() if name.endswith(".safetensors"))
    monkeypatch.setattr(fitting, "free_bytes", lambda folder: weights + 1000)
    with pytest.raises(ModelStoreError, match=r"where 1\.00 kB are free after a download of "):
        store.add(REPOSITORY)
    assert not [name for name in hub.downloads if name.endswith(".safetensors")]
    monkeypatch.setattr(fitting, "free_bytes", lambda folder: 100 * weights)
    with pytest.raises(KeyboardInterrupt):
        store.add(REPOSITORY, on_choice=choices.append, on_progress=_interrupting)
    assert "after a download of" in choices[-1].why
    store.add(REPOSITORY, on_choice=choices.append)
    assert "after a download of" not in choices[-1].why, "the cache has it now"


def test_a_folder_s_changed_checkpoint_starts_over(hub: HubServer, tmp_path: Path) -> None:
    store, folder = ModelStore(), tmp_path / "Mine"
    write_tiny(folder)
    with pytest.raises(KeyboardInterrupt):
        store.add(str(folder), "int8", on_progress=_interrupting)
    write_tiny(folder, seed=2)
    made = store.add(str(folder), "int8")
    assert str(made.name) == "mine:int8"
    assert made.record.source == str(folder)
    again = store.add(str(folder), "int8", again=True)
    assert again.record.pulled > made.record.pulled


def _interrupting(progress: object) -> None:
    if getattr(progress, "stage", "") == "weights":
        raise KeyboardInterrupt


def test_two_sources_have_two_names(tmp_path: Path, counting_folder: Path) -> None:
    store, folder = ModelStore(tmp_path / "models"), tmp_path / "tiny"
    put(store, counting_folder, "tiny", source="someone/tiny")
    write_tiny(folder)
    with pytest.raises(ModelStoreError, match="the name tiny belongs to someone/tiny: give another one with --name"):
        store.add(str(folder), "int8")
    with pytest.raises(ModelStoreError, match="'Mine' is not a model's name"):
        store.add(str(folder), "int8", name="Mine")


@pytest.mark.parametrize(
    ("memory", "disk", "label", "why"),
    [
        (
            16 * _GB,
            100 * _GB,
            "balanced",
            "balanced is the usual recipe: it takes 6.04 GB of 16.0 GB of memory at 32k tokens",
        ),
        (None, 100 * _GB, "balanced", "of memory at 32k tokens"),
        (5 * _GB, 100 * _GB, "balanced", "of 5.00 GB of memory at 8k tokens"),
        (16 * _GB, 2_600_000_000, "smallest", "most exact recipe that fits"),
    ],
)
def test_the_recipe_suits_the_machine(tmp_path: Path, memory: int | None, disk: int, label: str, why: str) -> None:
    source = open_source(str(_config(tmp_path)))
    found = fitting_recipe(source, Machine(memory, disk), "cpu")
    assert found.label.startswith(label), found
    assert why in found.why, found


def test_a_model_that_does_not_fit_says_what_is_missing(tmp_path: Path) -> None:
    source = replace(open_source(str(_config(tmp_path))), name="large")
    with pytest.raises(ModelStoreError) as caught:
        fitting_recipe(source, Machine(_GB, _GB), "cpu")
    text = str(caught.value)
    assert text.startswith("large does not fit this machine: the smallest recipe, ")
    assert "of disk, where 1.00 GB are free" in text
    assert "exports it nevertheless" in text


def test_the_memory_of_this_machine_is_no_limit_of_a_model_for_a_gpu(tmp_path: Path) -> None:
    found = fitting_recipe(open_source(str(_config(tmp_path))), Machine(_GB, 100 * _GB), "cuda")
    assert found.label == "cuda"
    assert "it takes 7.00 GB of a GPU's memory at 32k tokens" in found.why


def test_a_target_without_plans_gets_its_usual_recipe(tmp_path: Path) -> None:
    found = fitting_recipe(open_source(str(_config(tmp_path))), Machine(_GB, _GB), "rtx")
    assert (found.label, found.recipe.recipe) == ("int4", Recipe.preset("int4"))
    assert found.why == "int4 is the usual recipe; rtx has no plans of memory"


def _config(folder: Path) -> Path:
    """config.json of the published model with 4 billion parameters."""
    write_json(folder / "config.json", PUBLISHED["4B"].config())
    return folder / "config.json"
