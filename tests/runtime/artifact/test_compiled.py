"""Records of compiled models: what is written is read, and what does not belong to the artifact is not used."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwonnx.runtime.artifact.compiled import RECORD, compiled_folders
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.artifact.manifest import ArtifactError
from tests.runtime.artifact.compiled_models import IDENTITY, LIMITS, add_compiled, portable

pytestmark = pytest.mark.fast


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return portable(tmp_path / "artifact")


def test_a_record_is_read_as_it_was_written(artifact: Artifact) -> None:
    folder = add_compiled(artifact)
    (found,) = compiled_folders(artifact)
    assert found.path == folder
    assert found.model is not None
    assert (found.model.identity, found.model.limits) == (IDENTITY, LIMITS)
    assert [entry.path for entry in found.model.files] == ["decoder.engine", "decoder.onnx"]
    assert found.graph == folder / "decoder.onnx"


def test_a_compiled_model_does_not_change_the_artifact(artifact: Artifact) -> None:
    add_compiled(artifact)
    assert open_artifact(artifact.folder).id == artifact.id


def test_each_kind_of_gpu_has_a_model(artifact: Artifact) -> None:
    add_compiled(artifact)
    add_compiled(artifact, replace(IDENTITY, gpu="NVIDIA A10", compute_capability="8.6"))
    (artifact.folder / "compiled" / ".part").mkdir()
    (artifact.folder / "compiled" / "sm89.timing").touch()
    assert len(list(compiled_folders(artifact))) == 2


@pytest.mark.parametrize("name", ["decoder.engine", "decoder.onnx"])
@pytest.mark.parametrize("content", [b"other!", b"longer than it was", None])
def test_a_damaged_file_is_found_when_the_model_is_used(artifact: Artifact, name: str, content: bytes | None) -> None:
    file = add_compiled(artifact) / name
    file.unlink()
    if content is not None:
        file.write_bytes(content[: 5 if name == "decoder.onnx" and content == b"other!" else None])
    (found,) = compiled_folders(artifact)
    with pytest.raises(ArtifactError, match=r"was changed|bytes where|is missing"):
        assert found.graph


def _replaced(record: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**record, **fields}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: _replaced(record, schema_version=2), "is of another version of qwonnx"),
        (lambda record: _replaced(record, artifact="0" * 64), "was compiled from another artifact"),
        (lambda record: _replaced(record, graph="vision"), "has no graph vision"),
        (lambda record: _replaced(record, model="../decoder.onnx"), "does not list its model"),
        (lambda record: _replaced(record, identity={"gpu": "NVIDIA L4"}), "missing or unknown fields"),
        (lambda record: _replaced(record, limits=None), "should be an object"),
        (lambda record: [record], "not a JSON object"),
    ],
)
def test_a_record_that_does_not_fit_says_why(
    artifact: Artifact, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    record = add_compiled(artifact) / RECORD
    record.write_text(json.dumps(change(json.loads(record.read_text()))))
    (found,) = compiled_folders(artifact)
    assert found.model is None
    assert message in found.refusal
    assert "\n" not in found.refusal


def test_a_file_outside_the_folder_is_not_opened(artifact: Artifact) -> None:
    record = add_compiled(artifact) / RECORD
    content = json.loads(record.read_text())
    content["model"] = content["files"][1]["path"] = "../../decoder.onnx"
    record.write_text(json.dumps(content))
    (found,) = compiled_folders(artifact)
    with pytest.raises(ArtifactError, match="lies outside"):
        assert found.graph


def test_a_folder_without_a_record_or_a_link_is_not_used(artifact: Artifact, tmp_path: Path) -> None:
    compiled = artifact.folder / "compiled"
    (compiled / ("0" * 16)).mkdir(parents=True)
    (compiled / ("1" * 16)).symlink_to(tmp_path)
    refusals = [found.refusal for found in compiled_folders(artifact)]
    assert "No such file" in refusals[0]
    assert "links are not followed" in refusals[1]


def test_differences_name_both_sides() -> None:
    other = replace(IDENTITY, tensorrt="10.16.1")
    assert IDENTITY.differences(IDENTITY) == ""
    assert IDENTITY.differences(other) == "tensorrt 10.13.0 (here 10.16.1)"
    assert LIMITS.exceeded(LIMITS) == ""
    assert LIMITS.exceeded(replace(LIMITS, max_num_seqs=9, max_model_len=1)) == "max_num_seqs 9 (compiled for 8)"
