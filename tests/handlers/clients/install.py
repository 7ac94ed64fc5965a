"""Install the clients that `make soak` runs: `python -m tests.handlers.clients.install [FOLDER]`, or `make clients`.

It takes minutes and 3 GB. Each file of packages/ has a virtual environment in the folder, because they need different
versions of the same packages; node_modules is beside these. installed.py finds them in .clients, the default.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = Path(__file__).with_name("packages")
ROOT = Path(__file__).parents[3]
DEFAULT = ROOT / ".clients"


def main(folder: Path) -> int:
    """Install what can be installed. Returns the exit code: 1 if something could not."""
    folder.mkdir(parents=True, exist_ok=True)
    commands = []
    for requirements in sorted(PACKAGES.glob("*.txt")):
        environment = folder / requirements.stem
        venv.create(environment, with_pip=True)
        python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        commands.append([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)])
    shutil.copy(PACKAGES / "package.json", folder)
    commands.append(["npm", "install", "--no-audit", "--no-fund"])
    failed = [command for command in commands if not _succeeds(command, folder)]
    for command in failed:
        print(f"failed: {' '.join(command)}", file=sys.stderr)
    return min(len(failed), 1)


def _succeeds(command: list[str], folder: Path) -> bool:
    program = shutil.which(command[0])
    return program is not None and subprocess.run([program, *command[1:]], cwd=folder, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT))
