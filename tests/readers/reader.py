"""A user of a clean machine: a home of its own, a clone of this repository, commands as typed into bash."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from tests.readers.machine import CleanMachine
from tests.test_code_blocks import blocks

ROOT = Path(__file__).resolve().parent.parent.parent
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x07")


@dataclass(frozen=True, slots=True)
class Reader:
    """A user who starts with a clone.

    name: of the user.
    home: its home, as a path of this machine.
    """

    machine: CleanMachine
    name: str
    home: Path

    @property
    def clone(self) -> Path:
        return self.home / "qwonnx"

    def run(self, script: str, *, status: int = 0, timeout: float = 1200) -> str:
        """What a script of bash prints, run in the clone with its environment activated once there is one.

        Raises AssertionError if it ends with another status.
        """
        with TemporaryFile("w+") as output:
            command = self._command(script)
            run = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=timeout
            )
            output.seek(0)
            said = output.read()
        assert run.returncode == status, f"{script}\nended with {run.returncode}:\n{said[-4000:]}"
        return said

    def python(self, program: str) -> str:
        """What a program of Python prints."""
        (self.home / "program.py").write_text(program, encoding="utf-8")
        return self.run("python ~/program.py")

    @contextmanager
    def typing(self, script: str) -> Iterator[Terminal]:
        """A script in a terminal of its own; what still runs at the end is killed."""
        process, descriptor = pty.fork()
        if process == 0:
            command = self._command(script)
            os.execvp(command[0], command)
        terminal = Terminal(process, descriptor)
        try:
            yield terminal
        finally:
            terminal.close()

    def _command(self, script: str) -> list[str]:
        variables = {
            "HOME": f"/home/{self.name}",
            "USER": self.name,
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "COLUMNS": "100",
        }
        begin = "cd ~/qwonnx; if [ -e .venv/bin/activate ]; then . .venv/bin/activate; fi"
        return self.machine.command(self.name, ["bash", "-ec", f"{begin}\n{script}"], variables)


class Terminal:
    """A process that believes it is used by a person."""

    def __init__(self, process: int, descriptor: int) -> None:
        self._process, self._descriptor, self._ended = process, descriptor, False
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def wait_for(self, pattern: str, timeout: float = 120) -> re.Match[str]:
        """The first match of a regular expression in what was shown.

        Raises AssertionError if it does not come.
        """
        end = time.monotonic() + timeout
        while (found := re.search(pattern, self._plain())) is None:
            assert time.monotonic() < end, f"{pattern!r} did not come:\n{self._plain()[-4000:]}"
            assert self._read(0.2), f"it ended before {pattern!r}:\n{self._plain()[-4000:]}"
        return found

    def wait(self, timeout: float = 60) -> int:
        """The exit status."""
        end = time.monotonic() + timeout
        while self._read(0.2):
            assert time.monotonic() < end, f"it does not end:\n{self._plain()[-4000:]}"
        _, status = os.waitpid(self._process, 0)
        self._ended = True
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        os.close(self._descriptor)
        if not self._ended:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)

    def _plain(self) -> str:
        plain = _ESCAPES.sub("", self.shown).replace("\r\n", "\n")
        while "\b" in plain:
            plain = re.sub(r"[^\b]?\b", "", plain, count=1)
        return plain

    def _read(self, seconds: float) -> bool:
        """Take what was written meanwhile; False after the end."""
        if not select.select([self._descriptor], [], [], seconds)[0]:
            return True
        try:
            read = os.read(self._descriptor, 1 << 16)
        except OSError:  # Linux says so that the other side is closed
            return False
        self.shown += read.decode(errors="replace")
        return bool(read)


def new_reader(machine: CleanMachine, name: str) -> Reader:
    """A new user with a clone of what is committed here."""
    home = machine.add_user(name)
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(home / "qwonnx")], check=True)
    machine.give(name, home)
    return Reader(machine, name, home)


def commands_of(page: str, containing: str) -> tuple[str, ...]:
    """The lines of the one block of a page that has a text, without comments."""
    (block,) = (block for block in blocks(ROOT / page) if any(containing in line for line in block.lines))
    return tuple(line.partition("  #")[0].strip() for line in block.lines)


def python_of(page: str) -> str:
    """The first Python example of a page."""
    return "\n".join(next(block.lines for block in blocks(ROOT / page) if block.language == "python")) + "\n"
