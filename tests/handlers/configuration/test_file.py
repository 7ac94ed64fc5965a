"""Configuration files: option over variable over file over default, one-line errors, and secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwonnx.handlers.cli.configured import apply, read_configuration
from qwonnx.handlers.cli.serve_options import read_options
from qwonnx.handlers.configuration.places import configuration_files
from qwonnx.runtime.errors import SettingsError
from tests.handlers.cli.commands import error_line, qwonnx

pytestmark = pytest.mark.fast


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; there are no files of the user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("QWONNX_CONFIG", raising=False)
    return tmp_path


def configured(text: str, *words: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    """The words and the variables under a file with a text."""
    Path("qwonnx.toml").write_text(text, encoding="utf-8")
    given, _ = apply(read_configuration(configuration_files(), words[0]), words, environment)
    return given, environment


def refused(text: str, command: str = "serve") -> str:
    with pytest.raises(SettingsError) as caught:
        configured(text, command)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith("qwonnx.toml")
    return said


def test_files_are_found_in_their_order(folder: Path) -> None:
    assert configuration_files() == ()
    (folder / "config" / "qwonnx").mkdir(parents=True)
    (folder / "config" / "qwonnx" / "qwonnx.toml").write_text("max_num_seqs = 1\nspin = false")
    (folder / "qwonnx.toml").write_text("max_num_seqs = 2")
    first, second = configuration_files()
    assert first == "qwonnx.toml"
    settings = read_configuration((first, second), "serve").settings
    assert {name: entry.text for name, entry in settings.items()} == {
        "QWONNX_MAX_NUM_SEQS": "2",
        "QWONNX_SPIN": "false",
    }
    assert configuration_files({"QWONNX_CONFIG": "other.toml", "HOME": "/"}) == ("other.toml",)
    assert configuration_files({"QWONNX_CONFIG": "", "HOME": "/"}) == ()


@pytest.mark.parametrize("file", [True, False])
@pytest.mark.parametrize("variable", [True, False])
@pytest.mark.parametrize("option", [True, False])
def test_an_option_is_stronger_than_a_variable_and_that_than_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, file: bool, variable: bool, option: bool
) -> None:
    monkeypatch.setenv("QWONNX_MAX_NUM_SEQS", "4" if variable else "")
    (folder / "qwonnx.toml").write_text("[serve]\nmax_num_seqs = 2\nhost = '::1'\n" if file else "")
    words = ["serve", "./x", *(["--max-num-seqs", "6"] if option else [])]
    words, _ = apply(read_configuration(configuration_files(), "serve"), words)
    options = read_options(words[1:])
    assert options.runtime.max_num_seqs == (6 if option else 4 if variable else 2 if file else 8)
    assert options.host == ("::1" if file else "127.0.0.1")


def test_a_command_s_table_is_stronger_than_the_top_and_for_it_alone(folder: Path) -> None:
    text = "threads = 1\n[generate]\nthreads = 2\n[serve]\nmemory = '8GB'\n"
    assert configured(text, "generate", "./x") == (["generate", "./x"], {"QWONNX_NUM_THREADS": "2"})
    assert configured(text, "serve")[1] == {"QWONNX_NUM_THREADS": "1", "QWONNX_MEMORY_BYTES": "8GB"}


def test_options_become_words_before_the_given_ones(folder: Path) -> None:
    text = (
        "[generate]\ntemperature = 0.5\nthinking = false\nstop = ['a', 'b']\nstats = true\n"
        "[export]\nmemory = '1GB'\nforce = false\n"
    )
    words, variables = configured(text, "generate", "./x", "--prompt", "y")
    switches = ["--no-thinking", "--stop=a", "--stop=b", "--stats"]
    assert words == ["generate", "--temperature=0.5", *switches, "./x", "--prompt", "y"]
    assert configured(text, "generate", "--temperature", "1", "--thinking", "--stop=c")[0][1] == "--stats"
    assert configured(text, "export", "a", "b") == (["export", "--memory=1GB", "a", "b"], {})
    assert variables == {}


def test_lists_and_switches_are_as_variables_have_them(folder: Path) -> None:
    text = "spin = false\n[serve]\ncors_origins = ['https://a.com', 'https://b.com']\nui = true\nsend-seconds = 1.5\n"
    assert configured(text, "serve")[1] == {
        "QWONNX_SPIN": "false",
        "QWONNX_CORS_ORIGINS": "https://a.com,https://b.com",
        "QWONNX_UI": "true",
        "QWONNX_SEND_SECONDS": "1.5",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_num_seq = 1", "there is no setting max_num_seq: did you mean max_num_seqs?"),
        ("port = 1", "there is no setting port: write it below [serve]"),
        ("xyzzy = 1", "there is no setting xyzzy: qwonnx config lists all"),
        ("[sevre]\nport = 1", "there is no command sevre: did you mean [serve]?"),
        ("[serve]\nprot = 1", "[serve]: there is no setting prot: did you mean port?"),
        ("max_num_seqs = 'many'", "max_num_seqs is 'many': give a whole number"),
        ("max_num_seqs = 0", "max_num_seqs is 0: give at least 1"),
        ("[serve]\ncache_bytes = 'much'", "cache_bytes is 'much', which is not a size"),
        ("max_num_seqs = [[1]]", "max_num_seqs is neither a text"),
        ("max_num_seqs = 2026-01-01", "max_num_seqs is neither a text"),
        ("max_num_seqs =", "is not TOML ("),
        ("[" * 2000, "is not TOML ("),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(folder: Path, text: str, said: str) -> None:
    assert said in refused(text)


def test_a_secret_needs_a_file_that_nobody_else_reads(folder: Path) -> None:
    file = folder / "qwonnx.toml"
    file.write_text("[serve]\napi_key = 'S3CRET-KEY'\n")
    file.chmod(0o644)
    with pytest.raises(SettingsError, match=r"has api_key, and other users may read it: chmod 600") as caught:
        read_configuration(configuration_files(), "serve")
    assert "S3CRET" not in str(caught.value)
    file.chmod(0o600)
    shown = qwonnx("config", "serve")
    assert "api_key" in shown.stdout
    assert "S3CRET" not in shown.stdout + qwonnx("config", "serve", "--json").stdout
    _, variables = configured("[serve]\napi_key = 'S3CRET KEY'\n", "list")
    assert variables == {}
    with pytest.raises(SettingsError) as caught:
        read_configuration(configuration_files(), "serve")
    assert "S3CRET" not in str(caught.value)


def test_an_empty_variable_of_a_secret_is_not_filled_by_a_file(folder: Path) -> None:
    file = folder / "qwonnx.toml"
    file.write_text("")
    file.chmod(0o600)
    _, variables = configured("api_key = 'abc'\nmax_num_seqs = 2", "serve", QWONNX_API_KEY="", QWONNX_MAX_NUM_SEQS="")
    assert variables == {"QWONNX_API_KEY": "", "QWONNX_MAX_NUM_SEQS": "2"}


def test_commands_read_the_file(folder: Path, counting_folder: Path) -> None:
    file = folder / "qwonnx.toml"
    file.write_text(f"artifact = '{counting_folder}'\n[generate]\nmax_tokens = 3\ntop-k = 'x'\n")
    assert error_line(qwonnx("generate", "./x", "--prompt", "y")).startswith(
        "qwonnx: error: qwonnx.toml [generate]: --top-k"
    )
    file.write_text("capsules = 's3://user:pw@host/x'\n[generate]\nmax_tokens = 3\n")
    three = qwonnx("generate", counting_folder, "--prompt", "Hello", "--stats", QWONNX_CAPSULES="")
    assert "3 tokens, finish reason length" in three.stderr
    listed = json.loads(qwonnx("config", "generate", "--json", QWONNX_SPIN="1").stdout)
    assert listed["files"] == ["qwonnx.toml"]
    values = {each["name"]: (each["value"], each["source"]) for each in listed["settings"]}
    assert values["spin"] == ("1", "QWONNX_SPIN")
    assert values["capsules"] == ("s3://...@host/x", "qwonnx.toml")
    assert values["--max-tokens"] == ("3", "qwonnx.toml [generate]")
    assert values["max_queued_requests"] == ("256", "default")
    narrow = qwonnx("config", "--all", COLUMNS="60").stdout
    assert max(len(line.rstrip()) for line in narrow.splitlines()) <= 60
    assert "there is no command 'x'" in error_line(qwonnx("config", "x"))
    assert "cannot read missing.toml" in error_line(qwonnx("list", QWONNX_CONFIG="missing.toml"))
