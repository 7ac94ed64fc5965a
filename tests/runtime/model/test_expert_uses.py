"""How often experts were needed, kept in a file beside the artifact that a stranger may have written."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.model import expert_uses
from tests.runtime.counting_model import CountingModel

pytestmark = pytest.mark.fast


@pytest.fixture
def artifact(counting_model: CountingModel, tmp_path: Path) -> Artifact:
    """An artifact that says it has four experts, of which a token needs two, in each of three layers."""
    found = open_artifact(shutil.copytree(counting_model.folder, tmp_path / "artifact"))
    facts = dataclasses.replace(found.manifest.model, num_experts=4, num_experts_per_tok=2, num_hidden_layers=3)
    return Artifact(found.folder, dataclasses.replace(found.manifest, model=facts))


def test_uses_come_back_as_shares_of_tokens(artifact: Artifact) -> None:
    assert expert_uses.load(artifact) == []
    path = expert_uses.save(artifact, [[10, 6, 4, 0], [0, 0, 0, 0]])
    assert expert_uses.load(artifact) == [[1.0, 0.6, 0.4, 0.0], [0.0, 0.0, 0.0, 0.0]]
    expert_uses.save(artifact, [[1, 1, 1, 1]])
    assert expert_uses.load(artifact) == [[0.5] * 4]
    assert [each.name for each in path.parent.iterdir() if "experts" in each.name] == ["experts.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"artifact": "another"},
        {"uses": [[1, 2, 3]]},
        {"uses": [[1, 2, 3, 4]] * 4},
        {"uses": [[1, 2, 3, -4]]},
        {"uses": [[1, 2, 3, 4.5]]},
        {"uses": [[1, 2, 3, True]]},
        {"uses": [[1, 2, 3, 1 << 63]]},
        {"uses": "many"},
        {"more": 1},
    ],
)
def test_a_file_that_does_not_fit_is_named_and_ignored(
    artifact: Artifact, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    path = expert_uses.save(artifact, [[1, 2, 3, 4]])
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert expert_uses.load(artifact) == []
    assert f"{path} is not used" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{", '{"artifact": "a", "artifact": "b"}', "\ud800", "[" * 100_000])
def test_a_damaged_file_is_ignored(artifact: Artifact, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (artifact.folder / expert_uses.FILE).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert expert_uses.load(artifact) == []
    assert "is not used" in caplog.text
