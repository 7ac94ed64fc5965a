"""Opening an artifact: refusals, in one line that names the cause and the remedy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.artifact.manifest import (
    ArtifactError,
    ArtifactFileError,
    ArtifactHashError,
    ManifestError,
    write_manifest,
)
from qwonnx.runtime.artifact.schemas import SCHEMA_VERSION


@pytest.fixture
def artifact(tiny_fp32: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_fp32.folder, tmp_path / "artifact"))


def _edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _refused(folder: Path, kind: type[ArtifactError], *words: str, verify: bool = False) -> None:
    with pytest.raises(kind) as caught:
        open_artifact(folder, verify=verify)
    message = str(caught.value)
    assert "\n" not in message
    assert ": " in message, "a message is a cause and a remedy"
    for word in words:
        assert word in message


def test_a_written_manifest_reads_back_as_it_was(tiny_fp32: Artifact, artifact: Path) -> None:
    copy = open_artifact(artifact, verify=True)
    assert copy.manifest == tiny_fp32.manifest
    assert copy.id == tiny_fp32.id


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    _refused(tmp_path, ManifestError, "not an artifact", "qwonnx export")


def test_a_newer_schema_asks_for_an_upgrade(artifact: Path) -> None:
    _edit(artifact, lambda document: document.update(schema_version=SCHEMA_VERSION + 1, new_field=1))
    _refused(artifact, ManifestError, str(SCHEMA_VERSION + 1), "upgrade qwonnx")


def _as_schema_6(document: dict[str, Any]) -> None:
    """As it was before a running model took adapters, and before a manifest had the checkpoint's files."""
    document.update(schema_version=6)
    document.pop("adapter_targets", None)
    document["source"].pop("files", None)


def _as_schema_5(document: dict[str, Any]) -> None:
    """As it was before adapters were merged."""
    _as_schema_6(document)
    document.update(schema_version=5)
    del document["adapters"]


def _as_newest(document: dict[str, Any]) -> None:
    """Undo _as_schema_6."""
    document.update(schema_version=SCHEMA_VERSION)
    document["source"].setdefault("files", [])


def _as_schema_4(document: dict[str, Any]) -> None:
    """As it was before models in stages."""
    _as_schema_5(document)
    document.update(schema_version=4)
    del document["stage"]


def _as_schema_3(document: dict[str, Any]) -> None:
    """As it was before graphs had operators for native kernels."""
    _as_schema_4(document)
    document.update(schema_version=3)
    del document["graphs"]["decoder"]["native_operators"]


def _as_schema_2(document: dict[str, Any]) -> None:
    """As qwonnx 0.1 wrote it: the manifest has the states, before the files."""
    _as_schema_3(document)
    states, files = document["graphs"]["decoder"].pop("states"), document.pop("files")
    document.update(schema_version=2, states=states, files=files)


def _as_schema_1(document: dict[str, Any]) -> None:
    """As it was before keys and values could be stored in fewer bits."""
    _as_schema_2(document)
    document.update(schema_version=1)
    del document["quantization"]["kv"]


def test_an_artifact_of_the_second_schema_has_the_decoders_states(tiny_fp32: Artifact, artifact: Path) -> None:
    _edit(artifact, _as_schema_2)
    text = (artifact / "manifest.json").read_text()
    opened = open_artifact(artifact, verify=True)
    decoder = dataclasses.replace(tiny_fp32.decoder, native_operators=())  # which older graphs have not
    assert (opened.manifest.schema_version, opened.manifest.graphs) == (2, {"decoder": decoder})
    # Capsules and baked prefixes are bound to the id, so it must be that of the manifest as it was written.
    canonical = json.dumps(json.loads(text), indent=1, ensure_ascii=False)
    assert opened.id == hashlib.sha256(canonical.encode()).hexdigest()
    write_manifest(artifact, opened.manifest)
    assert json.loads((artifact / "manifest.json").read_text()) == json.loads(text)


def test_an_artifact_of_the_third_schema_has_no_operators_for_native_kernels(artifact: Path) -> None:
    _edit(artifact, lambda document: document["graphs"]["decoder"].update(native_operators=["QuantizedLinear"]))
    assert open_artifact(artifact).decoder.native_operators == ("QuantizedLinear",)
    _edit(artifact, _as_schema_6)
    _edit(artifact, lambda document: document.update(schema_version=3))
    _refused(artifact, ManifestError, "graphs.decoder")
    _edit(artifact, _as_newest)
    _edit(artifact, _as_schema_3)
    text = (artifact / "manifest.json").read_text()
    opened = open_artifact(artifact)
    assert opened.decoder.native_operators == ()
    canonical = json.dumps(json.loads(text), indent=1, ensure_ascii=False)
    assert opened.id == hashlib.sha256(canonical.encode()).hexdigest()


def test_an_artifact_of_the_fourth_schema_is_a_whole_model(artifact: Path) -> None:
    _edit(artifact, _as_schema_5)
    _edit(artifact, lambda document: document.update(schema_version=4))
    _refused(artifact, ManifestError, "stage")
    _edit(artifact, lambda document: document.pop("stage"))
    text = (artifact / "manifest.json").read_text()
    opened = open_artifact(artifact)
    assert opened.manifest.stage.is_whole
    canonical = json.dumps(json.loads(text), indent=1, ensure_ascii=False)
    assert opened.id == hashlib.sha256(canonical.encode()).hexdigest()


def test_an_artifact_of_the_fifth_schema_has_no_adapters(artifact: Path) -> None:
    _edit(artifact, _as_schema_6)
    _edit(artifact, lambda document: document.update(schema_version=5))
    _refused(artifact, ManifestError, "adapters")
    _edit(artifact, _as_schema_5)
    text = (artifact / "manifest.json").read_text()
    opened = open_artifact(artifact)
    assert opened.manifest.adapters == ()
    canonical = json.dumps(json.loads(text), indent=1, ensure_ascii=False)
    assert opened.id == hashlib.sha256(canonical.encode()).hexdigest()


def test_an_artifact_of_the_sixth_schema_takes_no_adapters_and_has_no_files_of_its_checkpoint(artifact: Path) -> None:
    _edit(artifact, lambda document: document.update(schema_version=6))
    _refused(artifact, ManifestError, "files")
    _edit(artifact, lambda document: document["source"].pop("files"))
    _refused(artifact, ManifestError, "adapter_targets")
    _edit(artifact, _as_schema_6)
    text = (artifact / "manifest.json").read_text()
    opened = open_artifact(artifact)
    assert (opened.manifest.source.files, opened.manifest.adapter_targets) == ((), ())
    canonical = json.dumps(json.loads(text), indent=1, ensure_ascii=False)
    assert opened.id == hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(("number", "count"), [(0, 2), (3, 2), (1, 0), (2, 1), (1, 1 << 40)])
def test_a_stage_that_cannot_be_is_refused(artifact: Path, number: int, count: int) -> None:
    _edit(artifact, lambda document: document.update(stage={"number": number, "count": count, "export": "x"}))
    _refused(artifact, ManifestError, f"stage {number} of {count}")


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("states"),
        lambda document: document.update(states=1),
        lambda document: document["graphs"]["decoder"].update(states=[]),
        lambda document: document["graphs"].update(decoder=7),
        lambda document: document.update(graphs=[]),
        lambda document: document["states"].append(document["states"][0]),
    ],
)
def test_a_damaged_manifest_of_the_second_schema_is_refused(artifact: Path, change: Any) -> None:
    _edit(artifact, _as_schema_2)
    _edit(artifact, change)
    _refused(artifact, ManifestError)


def test_an_artifact_of_the_first_schema_has_a_float_cache(tiny_fp32: Artifact, artifact: Path) -> None:
    _edit(artifact, _as_schema_1)
    manifest = open_artifact(artifact, verify=True).manifest
    assert (manifest.schema_version, manifest.quantization) == (1, tiny_fp32.manifest.quantization)
    _edit(artifact, lambda document: document.update(schema_version=2))
    _refused(artifact, ManifestError, "quantization", "kv")


def test_graphs_have_states_of_their_own_and_share_weight_files(tiny_fp32: Artifact, artifact: Path) -> None:
    decoder = tiny_fp32.decoder
    draft = dataclasses.replace(decoder, states=decoder.states[:1])
    write_manifest(artifact, dataclasses.replace(tiny_fp32.manifest, graphs={"decoder": decoder, "draft": draft}))
    opened = open_artifact(artifact)
    assert opened.decoder == decoder
    assert opened.manifest.graphs["draft"].states == decoder.states[:1]
    twice = dataclasses.replace(decoder, states=(decoder.states[0], decoder.states[0]))
    with pytest.raises(ManifestError, match="state twice"):
        write_manifest(artifact, dataclasses.replace(tiny_fp32.manifest, graphs={"decoder": decoder, "draft": twice}))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"schema_version": "1"}', '{"schema_version": true}', "[" * 99_999]
)
def test_a_manifest_that_is_no_manifest_is_refused(artifact: Path, content: str) -> None:
    (artifact / "manifest.json").write_text(content)
    _refused(artifact, ManifestError)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("target"),
        lambda document: document.update(surprise=1),
        lambda document: document.update(target=7),
        lambda document: document["model"].update(hidden_size="128"),
        lambda document: document["model"].update(hidden_size=True),
        lambda document: document.update(states=[]),
        lambda document: document["graphs"]["decoder"].update(states={}),
        lambda document: document["graphs"]["decoder"]["states"].append("conv"),
        lambda document: document["graphs"]["decoder"].pop("states"),
        lambda document: document.update(files=[["decoder.onnx", 1, "0"]]),
    ],
)
def test_a_missing_unknown_or_mistyped_field_is_named(artifact: Path, change: Callable[[dict[str, Any]], None]) -> None:
    _edit(artifact, change)
    _refused(artifact, ManifestError, "manifest.json", "export the checkpoint again")


def test_a_missing_file_is_named(artifact: Path) -> None:
    (artifact / "weights-00001.bin").unlink()
    _refused(artifact, ArtifactFileError, "weights-00001.bin", "missing")


def test_a_file_of_another_size_is_named_without_hashing(artifact: Path) -> None:
    with (artifact / "decoder.onnx").open("ab") as stream:
        stream.write(b"x")
    _refused(artifact, ArtifactFileError, "decoder.onnx", "bytes")


def test_a_changed_byte_is_found_by_verify_alone(artifact: Path) -> None:
    path = artifact / "weights-00001.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    open_artifact(artifact)
    _refused(artifact, ArtifactHashError, "weights-00001.bin", "changed", verify=True)


@pytest.mark.parametrize("path", ["../outside.bin", "/etc/hostname", "a/../../outside.bin"])
def test_a_path_that_leaves_the_folder_is_refused(artifact: Path, path: str) -> None:
    (artifact.parent / "outside.bin").write_bytes(b"x")
    _edit(artifact, lambda document: document["files"][0].update(path=path, size=1))
    _refused(artifact, ArtifactFileError, "outside")


def test_a_link_that_leaves_the_folder_is_refused(artifact: Path) -> None:
    target = artifact.parent / "moved.onnx"
    (artifact / "decoder.onnx").rename(target)
    (artifact / "decoder.onnx").symlink_to(target)
    _refused(artifact, ArtifactFileError, "outside")


def test_a_graph_that_the_manifest_does_not_list_is_refused(artifact: Path) -> None:
    _edit(artifact, lambda document: document["graphs"]["decoder"].update(file="other.onnx"))
    _refused(artifact, ManifestError, "other.onnx")


def test_an_unlisted_file_cannot_be_asked_for(artifact: Path) -> None:
    (artifact / "extra.txt").write_text("x")
    with pytest.raises(ArtifactFileError, match=r"extra\.txt"):
        open_artifact(artifact).file("extra.txt")
