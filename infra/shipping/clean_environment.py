"""A virtual environment with a wheel and what pip finds for it, and the questions that it must answer.

Nothing of the repository is importable there. pip is the newest one, run from its wheel, so that the environment has
what the wheel asks for and nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from infra.demo import ANSWER, QUESTION
from infra.shipping.distributions import ReleaseError
from infra.shipping.image_root import ROOT
from infra.shipping.interpreters import Interpreter

_SECONDS = 900.0
_LIBRARY = """
import sys
from qwonnx import LLM, __version__
with LLM(sys.argv[1]) as llm:
    print(llm.chat(sys.argv[2], thinking=False, temperature=0, max_tokens=48))
print(__version__)
"""
_KERNELS = "from qwonnx.runtime.native.library import native_library; native_library()"


@dataclass(frozen=True, slots=True)
class CleanEnvironment:
    """One environment of one interpreter.

    pip_wheel: the file of pip's own wheel.
    """

    folder: Path
    interpreter: Interpreter
    pip_wheel: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def pip(self) -> tuple[str, ...]:
        """The beginning of a command."""
        return (str(self.python), str(self.pip_wheel / "pip"), "--disable-pip-version-check")

    @property
    def packages(self) -> Path:
        """The folder that holds what was installed."""
        return self.folder / "lib" / f"python{self.interpreter.minor}" / "site-packages"

    def make(self) -> None:
        """Make it, empty.

        Raises:
            ReleaseError: the interpreter cannot.
        """
        _run([str(self.interpreter.path), "-m", "venv", "--without-pip", str(self.folder)], "venv")

    def install(self, wheel: Path, extras: str, *flags: str) -> None:
        """Install a wheel with extras from the package index, within the tested versions.

        Raises:
            ReleaseError: pip found none, or an installed package lacks another.
        """
        constraints = ROOT / "infra" / "constraints.txt"
        wanted = f"{wheel}[{extras}]"
        _run([*self.pip, "install", "--quiet", "-c", str(constraints), *flags, wanted], f"pip install {extras}")
        _run([*self.pip, "check"], "pip check")

    def export(self, checkpoint: Path, artifact: Path) -> None:
        """Export a checkpoint with the installed command.

        Raises:
            ReleaseError: the command failed.
        """
        command = [str(self.folder / "bin" / "qwonnx"), "export", str(checkpoint), str(artifact), "--weights", "int4"]
        _run(command, "qwonnx export")

    def ask_library(self, artifact: Path, version: str) -> None:
        """Ask through `from qwonnx import LLM`.

        Raises:
            ReleaseError: the answer is wrong, or the package says another version.
        """
        said = _run([str(self.python), "-I", "-c", _LIBRARY, str(artifact), QUESTION], "qwonnx.LLM").split()
        if said != [ANSWER, version]:
            raise ReleaseError(f"qwonnx.LLM says {' '.join(said)!r}, and {ANSWER!r} of {version} is right")

    def ask_command(self, artifact: Path) -> None:
        """Ask through `qwonnx generate`.

        Raises:
            ReleaseError: the answer is wrong.
        """
        command = [str(self.folder / "bin" / "qwonnx"), "generate", str(artifact), "--no-thinking", "--chat", QUESTION]
        said = _run([*command, "--temperature", "0"], "qwonnx generate")
        if said.strip() != ANSWER:
            raise ReleaseError(f"qwonnx generate says {said.strip()[:80]!r}, and {ANSWER!r} is right")

    def has_kernels(self) -> bool:
        """Whether the wheel's native library loads here."""
        run = subprocess.run([str(self.python), "-I", "-c", _KERNELS], capture_output=True, check=False)
        return run.returncode == 0


def fetch_pip(folder: Path) -> Path:
    """Download the newest pip's wheel.

    Raises:
        ReleaseError: pip found none.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*command, "--only-binary=:all:", "--dest", str(folder), "pip"], "pip download pip")
    return next(folder.glob("pip-*.whl"))


def _run(command: list[str], title: str) -> str:
    """Run in a folder that has no sources, and return stdout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "QWONNX_"))}
    try:
        run = subprocess.run(
            command, cwd="/", env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ReleaseError(f"{title} took more than {_SECONDS:.0f} s") from error
    if run.returncode:
        lines = [line for line in run.stderr.strip().splitlines() if line.strip()]
        raise ReleaseError(f"{title} failed: {' / '.join(lines[-3:])[:400]}")
    return run.stdout
