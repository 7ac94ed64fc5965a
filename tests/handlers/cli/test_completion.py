"""Completion: the candidates, and the three scripts in real shells."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwonnx.handlers.cli.commands import names
from qwonnx.handlers.cli.completion import FILE, FOLDER, candidates
from qwonnx.handlers.models.store import ModelStore
from tests.handlers.cli.commands import QWONNX, error_line, qwonnx
from tests.handlers.models.stored_models import put


@pytest.fixture
def shell_folder(tmp_path: Path, counting_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files, two models by name, and `qwonnx` among the programs."""
    monkeypatch.setenv("QWONNX_CACHE", str(tmp_path / "cache"))
    store = ModelStore()
    put(store, counting_folder, "counting")
    put(store, counting_folder, "twice")
    put(store, counting_folder, "twice", "best")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "qwonnx").write_text(f"#!/bin/sh\nexec {sys.executable} -c '{QWONNX[2]}' \"$@\"\n")
    (programs / "qwonnx").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "work"
    (folder / "my folder").mkdir(parents=True)
    (folder / "schema.json").write_text("{}")
    monkeypatch.chdir(folder)
    return folder


def words(*given: str) -> list[str]:
    return [word for word, _ in candidates(given)]


def test_candidates_are_commands_options_values_and_models(shell_folder: Path) -> None:
    assert words("") == list(names())
    assert words("gen") == ["generate"]
    assert words("--v") == ["--version"]
    assert words("generate", "--te") == ["--temperature"]
    assert words("generate", "--no-") == ["--no-thinking"]
    assert words("generate", "--stats", "--sta") == []
    assert words("generate", "--stop", "a", "--stop") == ["--stop", "--stop-token-ids"]
    assert words("generate", "") == ["counting", "twice:balanced", "twice:best", FOLDER]
    assert words("generate", "counting", "") == []
    assert words("generate", "--top-k", "4", "cou") == ["counting", FOLDER]
    assert words("generate", "--json-schema", "") == [FILE]
    assert words("serve", "--log-format", "") == ["text", "json"]
    assert words("serve", "--log-format=j") == ["--log-format=json"]
    assert words("serve", "tw") == ["twice:balanced", "twice:best", FOLDER]
    assert words("rm", "counting", "tw") == ["twice:balanced", "twice:best"]
    assert words("export", "--weights", "int") == ["int8", "int4"]
    assert words("pull", "--recipe", "b") == ["balanced", "best", FILE]
    assert words("completion", "z") == ["zsh"]
    assert words("config", "ser") == ["serve"]
    assert words("bench", "") == ["cold-start"]
    assert words("bench", "cold-start", "cou") == ["counting", FOLDER]
    assert words("nothing", "") == words("generate", "--temperature", "") == []


def test_every_command_completes_all_its_options(shell_folder: Path) -> None:
    for name in names():
        if name != "bench":
            found = words(name, "--")
            assert "--help" in found, name
            assert all(about for word, about in candidates((name, "--")) if word not in (FILE, FOLDER))


def test_the_protocol_prints_a_line_each_and_nothing_else(shell_folder: Path) -> None:
    asked = qwonnx("__complete", "serve", "--log-f", QWONNX_CONFIG="missing.toml")
    assert (asked.stdout, asked.stderr, asked.returncode) == ("--log-format\tForm of the log's lines.\n", "", 0)
    assert "bash, zsh, fish" in error_line(qwonnx("completion", "tcsh"))


def test_bash_completes(shell_folder: Path) -> None:
    assert _typed(["bash", "--norc", "--noprofile", "-i"], "bash", "qwonnx generat") == "qwonnx generate "
    assert _typed(["bash", "--norc", "--noprofile", "-i"], "bash", "qwonnx serve cou") == "qwonnx serve counting "
    assert _bash("qwonnx serve --log-format=") == ["text", "json"]
    assert _bash("qwonnx inspect twice:b") == ["balanced", "best"]
    assert _bash("qwonnx generate --json-schema s") == ["schema.json"]
    assert _bash("qwonnx inspect my") == ["my folder"]
    assert "--temperature" in _bash("qwonnx chat --")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes(shell_folder: Path) -> None:
    assert _typed(["zsh", "-f", "-i"], "zsh", "qwonnx generat") == "qwonnx generate "
    assert _typed(["zsh", "-f", "-i"], "zsh", "qwonnx serve cou") == "qwonnx serve counting "
    assert _typed(["zsh", "-f", "-i"], "zsh", "qwonnx show twice:ba") == "qwonnx show twice:balanced "


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes(shell_folder: Path) -> None:
    def fish(line: str) -> list[str]:
        command = f"{QWONNX_FISH}; complete -C '{line}'"
        done = subprocess.run(["fish", "-N", "-c", command], capture_output=True, text=True, timeout=60, check=True)
        return [found.partition("\t")[0] for found in done.stdout.splitlines()]

    assert fish("qwonnx generat") == ["generate"]
    assert fish("qwonnx serve cou") == ["counting"]
    assert fish("qwonnx serve --log-format ") == ["json", "text"]
    assert fish("qwonnx generate --json-schema s") == ["schema.json"]
    assert "my folder/" in fish("qwonnx inspect my")


QWONNX_FISH = "qwonnx completion fish | source"


def _bash(line: str) -> list[str]:
    """COMPREPLY for a line, by the script's function, with the words as bash breaks them."""
    program = (
        "eval \"$(qwonnx completion bash)\"; COMP_WORDBREAKS=$' \\t\\n\"\\'><=;|&(:'; COMP_LINE=$1; COMP_POINT=${#1};"
        '_qwonnx 2> /dev/null; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program, "bash", line], capture_output=True, text=True, timeout=60, check=True)
    return [found for found in done.stdout.splitlines() if found]


def _typed(command: list[str], shell: str, line: str) -> str:
    """The line that a shell has after a Tab, in a terminal."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"TERM": "dumb", "PS1": "> ", "COLUMNS": "200"}
        os.execvp(command[0], command)
    try:
        _say(terminal, f'eval "$(qwonnx completion {shell})"; echo rea"dy"\n', _PROMPT)
        return _say(terminal, f"{line}\t", None, line)
    finally:
        os.close(terminal)
        os.waitpid(process, 0)


# Before the prompt, the terminal itself would echo a Tab that no shell has seen.
_PROMPT = re.compile(r"ready\s.*> \Z", re.DOTALL)


def _say(terminal: int, text: str, until: re.Pattern[str] | None, line: str = "") -> str:
    """Type a text; return the last output that begins with the line, after it has grown."""
    os.write(terminal, text.encode())
    shown, end = "", time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 1 << 16).decode(errors="replace")
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x07", "", shown)
        while "\b" in plain:
            plain = re.sub(r"[^\b]?\b", "", plain, count=1)
        if until is not None and until.search(plain):
            return plain
        if until is None and line in plain:
            found = plain[plain.rindex(line) :].splitlines()[0]
            if found.endswith(" ") and len(found) > len(line):
                return found
    raise AssertionError(f"it did not come: {shown!r}")
