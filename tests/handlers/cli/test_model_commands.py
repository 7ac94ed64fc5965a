"""`qwonnx pull`, `list`, `show` and `rm`, and names where an artifact's folder may be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qwonnx.handlers.models.store import ModelStore
from tests.checkpoints import write_tiny
from tests.export.checkpoint.hub_server import COMMIT, REPOSITORY, hub_server
from tests.handlers.cli.commands import error_line, qwonnx
from tests.handlers.models.stored_models import put
from tests.handlers.whole.served_process import process_serving

_BODY = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_model_is_pulled_from_a_hub_listed_asked_and_removed(cache: Path, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "repository", num_shards=2)
    with hub_server(folder) as hub:
        place = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        pulled = qwonnx("pull", REPOSITORY, **place)
        assert pulled.returncode == 0, pulled.stderr
        assert pulled.stderr.startswith("balanced is the usual recipe: it takes ")
        assert pulled.stdout.startswith("tiny:balanced: ")
        assert pulled.stdout.endswith("Next: qwonnx chat tiny:balanced, or qwonnx serve tiny:balanced\n")
        again = qwonnx("pull", REPOSITORY, "--recipe", "balanced", **place)
        assert "is there already" in again.stdout
        missing = error_line(qwonnx("pull", "someone/missing", **place))
        assert "someone/missing" in missing
        (listed,) = json.loads(qwonnx("list", "--json").stdout)
        assert (listed["name"], listed["source"], listed["commit"]) == ("tiny:balanced", REPOSITORY, COMMIT)
        assert (listed["complete"], listed["used"]) == (True, None)
        verified = qwonnx("verify", "tiny", **place)
        assert "quantised as its recipe says" in verified.stdout.splitlines()[-1], verified.stderr
    asked = qwonnx("generate", REPOSITORY, "--prompt", "Hello", "--max-tokens", 4)
    assert (asked.returncode, asked.stderr) == (0, "")
    assert json.loads(qwonnx("show", "tiny", "--json").stdout)["used"] > 1e9
    assert qwonnx("show", "tiny", "--path").stdout.strip() == listed["artifact"]
    removed = qwonnx("rm", "tiny", "tiny:balanced")
    assert removed.stdout.startswith("removed tiny:balanced, ")
    assert removed.stdout.count("\n") == 1
    assert "There are no models" in qwonnx("list").stdout


def test_a_name_is_good_where_an_artifact_s_folder_is(cache: Path, counting_folder: Path, tmp_path: Path) -> None:
    put(ModelStore(), counting_folder, "counting")
    assert json.loads(qwonnx("inspect", "counting", "--json").stdout)["source"]["checkpoint"] == "counting-model"
    assert qwonnx("generate", "counting", "--prompt", "x", "--max-tokens", 2).returncode == 0
    not_pulled = error_line(qwonnx("verify", counting_folder))
    assert "was not pulled: name its checkpoint with --against" in not_pulled
    prompt = tmp_path / "system.txt"
    prompt.write_text("Be brief.", encoding="utf-8")
    assert qwonnx("bake", "counting:balanced", prompt).returncode == 0
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "x"}}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert qwonnx("batch", "counting", tmp_path / "in.jsonl", tmp_path / "out.jsonl").returncode == 0
    talk = qwonnx("chat", "counting", "--max-tokens", 2, "--max-model-len", 512, stdin="Hello\n")
    assert talk.returncode == 0
    with process_serving(Path("counting"), tmp_path / "log", "--max-model-len", 256) as served:
        assert served.model == "counting-model"
        for name, status in (("counting-model", 200), ("counting", 200), ("counting:balanced", 200), ("count", 404)):
            reply = served.post(json.dumps({**_BODY, "model": name}).encode())
            assert reply.status == status, reply.content
            assert reply.status == 404 or json.loads(reply.content)["model"] == name
    with process_serving(Path("counting"), tmp_path / "log", "--max-model-len", 256, QWONNX_ARTIFACT="nothing"):
        pass


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "countin"),
        ("generate", "countin", "--prompt", "x"),
        ("chat", "countin"),
        ("serve", "countin"),
        ("stage", "countin"),
        ("bake", "countin", "file"),
        ("batch", "countin", "a", "b"),
        ("bench", "cold-start", "countin"),
        ("compile", "countin"),
        ("verify", "countin", "--against", "x"),
        ("eval", "countin", "--text", __file__),
        ("show", "countin"),
        ("rm", "countin"),
    ],
    ids=lambda command: command[0],
)
def test_an_unknown_name_is_one_line_everywhere(cache: Path, counting_folder: Path, command: tuple[str, ...]) -> None:
    put(ModelStore(), counting_folder, "counting")
    assert error_line(qwonnx(*command)).endswith("did you mean counting:balanced?\n")


def test_a_function_finds_a_model_by_its_name(
    cache: Path, counting_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwonnx.handlers.app import host_from_environment
    from qwonnx.handlers.settings import ServerSettings
    from qwonnx.runtime.errors import SettingsError

    put(ModelStore(), counting_folder, "counting")
    monkeypatch.setenv("QWONNX_ARTIFACT", "someone/counting")
    host = host_from_environment(ServerSettings())
    host.start()
    host.wait(60)
    assert host.error is None
    host.close()
    monkeypatch.setenv("QWONNX_ARTIFACT", "other")
    with pytest.raises(SettingsError, match="neither a folder nor a pulled model"):
        host_from_environment(ServerSettings())


def test_an_unfinished_model_is_listed_and_removed(cache: Path) -> None:
    put(ModelStore(), None, "half")
    assert "unfinished" in qwonnx("list", COLUMNS="60").stdout
    assert "is not pulled to its end" in error_line(qwonnx("inspect", "half"))
    assert qwonnx("rm", "half").returncode == 0


def test_a_checkpoint_may_be_named_by_its_model(cache: Path, tiny_checkpoint: Path, counting_folder: Path) -> None:
    put(ModelStore(), counting_folder, "tiny", source=str(tiny_checkpoint))
    assert json.loads(qwonnx("check", "tiny", "--json").stdout)["refusal"] is None
    assert qwonnx("plan", "tiny").stdout.startswith(f"{tiny_checkpoint.name}: ")


def test_a_store_that_cannot_be_read_is_one_line(cache: Path) -> None:
    cache.mkdir()
    (cache / "models").write_text("no folder")
    assert "QWONNX_CACHE" in error_line(qwonnx("list"))
    shutil.rmtree(cache)
