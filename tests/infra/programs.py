"""Programs that packages bring, wherever this environment has them."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path


def program(package: str, name: str) -> str:
    """The path of a package's program, from the list of its files.

    Raises:
        FileNotFoundError: the package has none of this name.
    """
    for file in importlib.metadata.distribution(package).files or []:
        if file.name == name and "bin" in file.parts:
            return str(Path(str(file.locate())).resolve())
    raise FileNotFoundError(f"{package} has no program {name}")
