"""Which files are a model in GGUF, by their names alone.

NAME.gguf                            a model in one file
NAME-00001-of-00003.gguf             a series, which llama.cpp's gguf-split has cut
mmproj-NAME.gguf                     a vision tower beside a model, which is not read
"""

from __future__ import annotations

import re
from pathlib import Path

from qwonnx.export.errors import CheckpointError
from qwonnx.runtime.artifact.strict_json import quoted

PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
_VISION = "mmproj"
_OTHER_WEIGHTS = re.compile(r".*\.safetensors(\.index\.json)?|pytorch_model.*\.bin")


def is_gguf(path: Path) -> bool:
    """Whether a path is a file with the name of a GGUF file."""
    return path.suffix.lower() == ".gguf" and path.is_file()


def gguf_in(folder: Path, name: str | None = None) -> Path | None:
    """The first file of a folder's model in GGUF. None: there is none, or other weights are there.

    Args:
        folder: with files.
        name: the user's choice among several files.

    Raises:
        CheckpointError: there are several models and no choice, or the choice is not there.
    """
    if name is not None and not name.lower().endswith(".gguf"):
        return None
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found = [path for path in files if path.suffix.lower() == ".gguf"]
    models = [path for path in found if not path.name.lower().startswith(_VISION)]
    if name is not None:
        chosen = next((path for path in models if path.name == Path(name).name), None)
        if chosen is None:
            shown = ", ".join(quoted(path.name) for path in models[:4]) or "none is there"
            raise CheckpointError(f"--weights-file {quoted(name)} is not a file of {folder}; give one of: {shown}")
        return first_part(chosen)
    if any(_OTHER_WEIGHTS.fullmatch(path.name) for path in files):
        return None
    firsts = sorted({first_part(path) for path in models})
    if len(firsts) > 1:
        shown = ", ".join(quoted(path.name) for path in firsts[:4]) + (", ..." if len(firsts) > 4 else "")
        raise CheckpointError(f"{folder} has several models in GGUF ({shown}): choose one with --weights-file")
    return firsts[0] if firsts else None


def refuse_elsewhere(folder: Path, name: str | None = None) -> None:
    """Refuse a folder that is not on this machine and has no other weights than models in GGUF.

    Args:
        folder: with the names of its files.
        name: the user's choice among several files.

    Raises:
        CheckpointError: it has, or the choice is one.
    """
    files = sorted(path.name for path in folder.iterdir())
    chosen = [file for file in (files if name is None else [name]) if file.lower().endswith(".gguf")]
    if chosen and (name is not None or not any(map(_OTHER_WEIGHTS.fullmatch, files))):
        raise CheckpointError(
            f"{folder} has {quoted(chosen[0])}, and an export reads GGUF from a disk of this machine: copy it there,"
            " and give its path"
        )


def first_part(path: Path) -> Path:
    """The first file of the series that a file is of, or the file itself."""
    found = PART.fullmatch(path.name)
    return path if found is None else path.with_name(f"{found[1]}-00001-of-{found[3]}{found[4]}")
