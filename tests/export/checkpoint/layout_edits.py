"""Edits of a sound checkpoint's folder, from which the layouts of weight_layouts.py and text_layouts.py are made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

Edit = Callable[[Path], object]  # changes the folder
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Layout:
    """A folder that people have, as a row of docs/checkpoints.md names it.

    base is the sound folder that `edit` changes: "plain" (one file), "shards", "experts" (one tensor for each expert),
    "wide" (rows of 256 values, and another model).
    """

    name: str
    edit: Edit
    base: str = "plain"
    weights_file: str | None = None
    transformers_loads_it: bool = False  # and must find the same model
    same_weights: bool = True  # as the sound checkpoint, to the bit


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def together(*edits: Edit) -> Edit:
    def edit(folder: Path) -> None:
        for one in edits:
            one(folder)

    return edit


def nothing(folder: Path) -> None:
    pass


def without(*names: str) -> Edit:
    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return edit


def file(name: str, content: str | bytes = b"x") -> Edit:
    def edit(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return edit


def config(**fields: Any) -> Edit:
    """Set fields of config.json; ... removes one."""
    return changed("config.json", **fields)


def changed(name: str, **fields: Any) -> Edit:
    """Set fields of a JSON file; ... removes one."""

    def edit(folder: Path) -> None:
        document = read(folder / name) | fields
        write(folder / name, {key: value for key, value in document.items() if value is not ...})

    return edit


def only(*names: str) -> Edit:
    """Keep these files."""

    def edit(folder: Path) -> None:
        for path in folder.iterdir():
            if path.name not in names:
                path.unlink()

    return edit


def renamed(rename: Callable[[str], str]) -> Edit:
    """Other names of all tensors."""
    return tensors(lambda found: {rename(name): tensor for name, tensor in found.items()})


def tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], metadata: str = "pt") -> Edit:
    """Other tensors in model.safetensors."""

    def edit(folder: Path) -> None:
        save_file(change(load_file(folder / SINGLE)), folder / SINGLE, metadata={"format": metadata})

    return edit


def also(**added: Tensor) -> Edit:
    """More tensors; __ stands for a dot."""
    return tensors(lambda found: found | {name.replace("__", "."): tensor for name, tensor in added.items()})


def moved(old: str, new: str) -> Edit:
    return lambda folder: (folder / old).rename(folder / new)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*-of-*.safetensors"))
