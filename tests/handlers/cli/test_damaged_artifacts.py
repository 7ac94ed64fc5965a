"""The commands on damaged artifacts: one line, status 2, quickly, before the command listens or prints."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qwonnx.handlers.cli import main as cli
from qwonnx.runtime.artifact.folder import file_sha256
from tests.handlers.cli.commands import error_line, qwonnx

SECONDS = 3.0  # of the processor; a sound artifact of this size is opened in a tenth of one


@pytest.fixture
def artifact(counting_folder: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(counting_folder, tmp_path / "artifact"))


def written(name: str, content: bytes | None, *, rehash: bool = False) -> Callable[[Path], None]:
    """Replace a file, or remove it. With rehash, the manifest has the new size and hash."""

    def damage(folder: Path) -> None:
        path = folder / name
        path.unlink()
        if content is None:
            return
        path.write_bytes(content)
        if rehash:
            manifest = json.loads((folder / "manifest.json").read_text())
            for entry in manifest["files"]:
                if entry["path"] == name:
                    entry.update(size=len(content), sha256=file_sha256(path))
            (folder / "manifest.json").write_text(json.dumps(manifest))

    return damage


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: written(name, (folder / name).read_bytes()[:-100])(folder)


def changed(name: str) -> Callable[[Path], None]:
    return lambda folder: written(name, (folder / name).read_bytes()[:-1] + b"\xff")(folder)


def as_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


# Damage that every command finds when it opens an artifact.
FOUND_BY_ALL: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (written("manifest.json", None), "not an artifact"),
    "empty manifest": (written("manifest.json", b""), "manifest.json"),
    "cut manifest": (cut("manifest.json"), "manifest.json"),
    "no graph": (written("decoder.onnx", None), "decoder.onnx is missing"),
    "cut graph": (cut("decoder.onnx"), "decoder.onnx in"),
    "changed graph": (changed("decoder.onnx"), "was changed after its export"),
    "changed tokenizer": (changed("tokenizer.json"), "tokenizer.json in"),
    "no folder": (shutil.rmtree, "not an artifact"),
    "a file": (as_a_file, "artifact"),
}

# Damage that only an engine finds, if the artifact was made with it.
FOUND_BY_ENGINES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a graph that is none": (written("decoder.onnx", b"\x00" * 500, rehash=True), "ONNX Runtime cannot load"),
    "an empty graph": (written("decoder.onnx", b"", rehash=True), "ONNX Runtime cannot load"),
    "a tokenizer that is none": (written("tokenizer.json", b"{}", rehash=True), "tokenizer.json is malformed"),
    "a tokenizer of bytes": (written("tokenizer.json", b"\xff\xfe", rehash=True), "is not UTF-8 text"),
    "a template that is none": (written("chat_template.jinja", b"{% if %}", rehash=True), "template is malformed"),
    "a template of bytes": (written("chat_template.jinja", b"\xff", rehash=True), "is not UTF-8 text"),
    "sampling that is none": (written("generation_config.json", b"[", rehash=True), "generation_config.json"),
    "sampling out of range": (
        written("generation_config.json", b'{"top_p": 7, "temperature": 1e999}', rehash=True),
        "generation_config.json",
    ),
}

COMMANDS = {
    "inspect": ["inspect", "{}"],
    "generate": ["generate", "{}", "--prompt", "Hello"],
    "serve": ["serve", "{}", "--port", "0"],
    "verify": ["verify", "{}", "--against", "nothing"],
}


def refusal(command: str, artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which a command ends. Runs in this process, because there are many cases."""
    monkeypatch.setattr("sys.argv", ["qwonnx", *(word.format(artifact) for word in COMMANDS[command])])
    before = time.process_time()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    seconds = time.process_time() - before
    output = capsys.readouterr()
    assert ended.value.code == 2, output.err
    assert output.out == ""
    assert output.err.startswith("qwonnx: error: ")
    assert output.err.count("\n") == 1
    assert ": " in output.err.removeprefix("qwonnx: error: "), "a message is a cause and a remedy"
    assert seconds < SECONDS
    return output.err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("damage", "message"), FOUND_BY_ALL.values(), ids=FOUND_BY_ALL.keys())
def test_what_opening_finds_is_one_line(
    artifact: Path,
    command: str,
    damage: Callable[[Path], None],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(artifact)
    assert message in refusal(command, artifact, monkeypatch, capsys)


@pytest.mark.parametrize(("damage", "message"), FOUND_BY_ENGINES.values(), ids=FOUND_BY_ENGINES.keys())
def test_what_an_engine_finds_is_one_line(
    artifact: Path,
    damage: Callable[[Path], None],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(artifact)
    assert message in refusal("generate", artifact, monkeypatch, capsys)


@pytest.mark.parametrize("name", ["a graph that is none", "a tokenizer that is none"])
def test_a_server_that_cannot_load_its_model_ends(artifact: Path, name: str) -> None:
    damage, message = FOUND_BY_ENGINES[name]
    damage(artifact)
    assert message in error_line(qwonnx("serve", artifact, "--port", 0))


def test_names_that_look_like_markup_are_shown_as_they_are(artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["source"]["checkpoint"] = "[/red] [bold]model"
    manifest["target"] = manifest["quantization"]["weights"] = "[/blue]"
    manifest["graphs"]["[/x]"] = manifest["graphs"]["decoder"]
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    shown = qwonnx("inspect", artifact)
    assert (shown.returncode, shown.stderr) == (0, "")
    for name in ("[/red] [bold]model", "[/blue]", "[/x]"):
        assert name in shown.stdout


def test_memory_that_is_not_there_is_one_line(
    counting_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hungry(*arguments: object, **keywords: object) -> None:
        raise MemoryError

    monkeypatch.setattr("qwonnx.handlers.cli.inspect.open_artifact", hungry)
    assert "not enough memory" in refusal("inspect", counting_folder, monkeypatch, capsys)
