"""The sources of a plan's configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from qwonnx.export.errors import CheckpointError, ConfigError, UnsupportedModelError
from qwonnx.export.planning.source import open_source
from tests.export.checkpoint.hub_server import COMMIT, GATED, REPOSITORY, hub_server

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("name", "message"),
    [("m.gguf", "is not a sound GGUF file"), ("model.safetensors", "is not a config.json: give that")],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=message):
        open_source(str(tmp_path / name))


def test_a_folder_a_file_and_a_folder_with_nothing_else(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = open_source(str(tiny_checkpoint))
    assert (folder.name, folder.folder, folder.commit) == (tiny_checkpoint.name, tiny_checkpoint, None)
    assert folder.copied.is_exact
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    for place in (tiny_checkpoint / "config.json", tmp_path):
        alone = open_source(str(place))
        assert alone.config == folder.config
        assert alone.folder is None
        assert not alone.copied.is_exact


def test_of_a_repository_only_config_json_is_downloaded(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server(tiny_checkpoint) as hub:
        files = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}/")
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", "".join((hub.url, *files[1:])))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        source = open_source(REPOSITORY)
        assert hub.downloads == ["config.json"]
        assert (source.name, source.commit, source.folder) == (REPOSITORY, COMMIT, None)
        with pytest.raises(CheckpointError, match="gated"):
            open_source(GATED)


def test_what_is_wrong_with_it_is_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no revision 'main'"):
        open_source(str(tiny_checkpoint), "main")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        open_source(str(tmp_path))
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM"):
        open_source(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="malformed"):
        open_source(str(tmp_path))
