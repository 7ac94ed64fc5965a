"""Help and errors of every command have one look: plain, narrow, with types, defaults and examples."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwonnx.handlers.cli.command_line import spec_of
from qwonnx.handlers.cli.command_spec import CommandSpec, prose_and_examples
from qwonnx.handlers.cli.commands import names
from qwonnx.handlers.cli.help_text import MAX_WIDTH, help_text
from qwonnx.handlers.cli.main import main
from qwonnx.handlers.configuration.environment import setting_defaults

_COMMANDS = [(), *((name,) for name in names()), ("bench", "cold-start")]
_IDS = [" ".join(("qwonnx", *words)) for words in _COMMANDS]
_BOXES = re.compile("[\u2500-\u259f]")
# BYTES, NAME|FILE, cpu|cuda, NAME=FOLDER, ADDRESS,..., NAME[,NAME]
_VALUE = re.compile(r"[A-Z][A-Z|=-]*(,\.\.\.|\[,\.\.\.\]|\[,NAME\])?|[a-z0-9|-]+|BYTES/s\|NAME")


def run(*words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command that ends before it does anything."""
    out, err, given = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["qwonnx", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = given
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


@pytest.mark.parametrize("words", _COMMANDS, ids=_IDS)
@pytest.mark.parametrize("columns", ["200", "60"])
def test_help_is_plain_and_narrow_and_ends_in_examples(
    words: tuple[str, ...], columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    status, shown, errors = run(*words, "--help")
    assert (status, errors) == (0, "")
    lines = shown.rstrip("\n").split("\n")
    assert lines[0].startswith(f"Usage: {' '.join(('qwonnx', *words))}")
    start = lines.index("Examples:")
    width = min(int(columns), MAX_WIDTH)
    assert [line for line in lines[:start] if len(line) > width] == []
    examples = lines[start + 1 :]
    assert examples, "there are none"
    assert all("qwonnx " in line and line.startswith("  ") for line in examples), "they are the end"
    assert [line for line in examples if len(line) > MAX_WIDTH] == []
    assert not _BOXES.search(shown)
    assert not re.search(r"<(bool|str|int|float|path)>|--[a-z-]+ (INTEGER|FLOAT|PATH|DIRECTORY)\b", shown)


@pytest.mark.parametrize("name", names())
def test_every_option_has_a_type_by_name_and_its_default(name: str) -> None:
    if name == "bench":
        return
    spec, defaults = spec_of(name), setting_defaults()
    shown = " ".join(help_text(spec, 80).split())
    for option in spec.options:
        assert option.help, option
        assert option.help.endswith((".", ")")), option
        if option.is_argument or option.value is None:
            continue
        assert _VALUE.fullmatch(option.value), option
        assert f"{option.names[-1]} {option.value}" in shown
        if option.default is not None:
            assert f"[default: {option.default}]" in shown, option
        elif defaults.get(option.field):
            raise AssertionError(f"{option} has a default that is not shown")


def test_sizes_are_bytes_everywhere() -> None:
    for name in names():
        for option in spec_of(name).options:
            if option.field.endswith("_bytes") or option.names[-1] == "--memory":
                assert option.value == "BYTES", (name, option)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("generat x", "there is no command generat: did you mean generate? (qwonnx --help)"),
        ("xyzzy", "there is no command xyzzy (qwonnx --help)"),
        ("--vers", "there is no option --vers: did you mean --version? (qwonnx --help)"),
        ("generate", "ARTIFACT is missing (qwonnx generate --help)"),
        ("generate ./x --top-k x --prompt a", "--top-k: give a whole number (qwonnx generate --help)"),
        ("generate ./x --temperature hot --prompt a", "--temperature: give a number (qwonnx generate --help)"),
        ("generate ./x --tempature 1", "there is no option --tempature: did you mean --temperature?"),
        ("generate ./x y", "y is one word too many (qwonnx generate --help)"),
        ("generate ./x --stats=yes", "--stats: it takes no value"),
        ("generate ./x", "give either --prompt or --chat"),
        ("export a", "OUT is missing (qwonnx export --help)"),
        ("export a b --weights int5", "--weights: int5 is not one of fp32, int8, int4: did you mean int8?"),
        ("export a b --stages 1", "--stages: give at least 2 (qwonnx export --help)"),
        ("export a b --memory much", "--memory is 'much', which is not a size: write it as in 512MB"),
        ("plan x --sequences 2000", "--sequences: give at most 1024 (qwonnx plan --help)"),
        ("verify", "ARTIFACT is missing (qwonnx verify --help)"),
        ("verify ./x", "x was not pulled: name its checkpoint with --against"),
        ("verify ./x --against y --max-kl -1", "--max-kl: give at least 0 (qwonnx verify --help)"),
        ("rm", "MODEL... is missing (qwonnx rm --help)"),
        ("list x", "x is one word too many (qwonnx list --help)"),
        ("show nothing", "nothing is neither a folder nor a pulled model"),
        ("bench", "a command (cold-start) is missing (qwonnx bench --help)"),
        ("bench coldstart", "there is no command coldstart: did you mean cold-start? (qwonnx bench --help)"),
        ("bench cold-start ./x --seconds 0", "--seconds: give at least 1 (qwonnx bench cold-start --help)"),
        ("serve ./x --porto 1", "there is no option --porto: did you mean --port? (qwonnx serve --help)"),
        ("serve ./x --port x", "--port: 'x' is not a port: give 0 to 65535 (qwonnx serve --help)"),
        ("serve ./x --max-num-seqs x", "--max-num-seqs: 'x' is not a whole number (qwonnx serve --help)"),
        ("serve ./x --log-format jso", "--log-format: jso is not one of text, json: did you mean json?"),
        ("serve ./x y", "y is one word too many (qwonnx serve --help)"),
        ("serve ./x --host", "--host needs a value (qwonnx serve --help)"),
        ("route", "--to is missing (qwonnx route --help)"),
        ("stage", "ARTIFACT is missing (qwonnx stage --help)"),
        ("inspect ./nothing", "nothing"),
    ],
)
def test_an_error_is_one_line_with_a_hint_and_status_2(
    words: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QWONNX_CACHE", str(tmp_path / "cache"))
    status, shown, errors = run(*words.split())
    assert (status, shown) == (2, "")
    assert errors.startswith("qwonnx: error: ")
    assert errors.count("\n") == 1
    assert line in errors
    assert not _BOXES.search(errors)


def test_a_description_is_told_from_its_examples() -> None:
    text = "One\nline.\n\nAnother.\n\nExamples:\n\n    a \\\n        --b\n\n    c\n"
    assert prose_and_examples(text) == (("One line.", "Another."), ("a \\", "    --b", "c"))
    assert help_text(CommandSpec("qwonnx x", ("Prose.",), ("a" * 90,), ()), 40).endswith("a" * 90 + "\n")


def test_a_server_without_typer_says_what_it_has() -> None:
    program = (
        "import sys, importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'typer' else find(name, *rest)\n"
        "sys.modules['typer'] = None\n"
        "from qwonnx.handlers.cli.main import main\n"
        "sys.argv[0] = 'qwonnx'\n"
        "main()\n"
    )

    def said(*words: str) -> str:
        command = [sys.executable, "-c", program, *words]
        run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}, check=True)
        return run.stdout

    assert said("--version").startswith("qwonnx ")
    assert said() == said("--help")
    text = " ".join(said("--help").split())
    assert "The extra cli adds the other commands" in text
    for name in ("serve", "route", "stage"):
        assert f" {name} " in text
