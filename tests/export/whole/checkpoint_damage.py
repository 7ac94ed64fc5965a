"""Ways to damage a checkpoint, each a function of its folder.

The folder holds links to a sound checkpoint's files. Damage replaces one of them, and never writes through a link.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"

Damage = Callable[[Path], None]


def file(name: str, content: bytes) -> Damage:
    """Replace a file by another."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)

    return damage


def document(name: str, change: Callable[[Any], Any]) -> Damage:
    """Replace a document by the result of `change`, or by its argument if `change` edits it in place."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_bytes())
        result = change(content)
        file(name, json.dumps(content if result is None else result).encode())(folder)

    return damage


def tensors(header: Callable[[dict[str, Any]], Any] | bytes, *, length: int | None = None, data: int = 0) -> Damage:
    """Another header for model.safetensors.

    Args:
        header: its text, or a function of the sound header's document.
        length: the length that the file states; None: the true one.
        data: bytes that are added to the file, in addition to the header. They are a hole: no disk is used.
    """

    def damage(folder: Path) -> None:
        sound, size = header_of(folder / SINGLE)
        content = header if isinstance(header, bytes) else json.dumps(_changed(header, sound)).encode()
        prefix = (len(content) if length is None else length).to_bytes(8, "little")
        file(SINGLE, prefix + content)(folder)
        with (folder / SINGLE).open("r+b") as stream:
            stream.truncate(8 + len(content) + max(0, size + data))

    return damage


def _changed(change: Callable[[dict[str, Any]], Any], sound: dict[str, Any]) -> Any:
    result = change(sound)
    return sound if result is None else result


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the number of bytes after it."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    return header, path.stat().st_size - 8 - length


def first(change: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Change fields of the first tensor; None removes one."""

    def edit(header: dict[str, Any]) -> None:
        entry = header[_first_name(header)]
        for name, value in change.items():
            entry[name] = value
            if value is None:
                del entry[name]

    return edit


def renamed(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Give the first tensor another name."""
    return lambda header: {name if key == _first_name(header) else key: value for key, value in header.items()}


def _first_name(header: dict[str, Any]) -> str:
    return next(name for name in header if name != "__metadata__")


def special(name: str, make: Callable[[Path], object]) -> Damage:
    """Replace a file by something that is not a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def loop(path: Path) -> None:
    """Two links to each other."""
    other = path.with_name(f"loop-{path.name}")
    path.symlink_to(other.name)
    other.symlink_to(path.name)


def index(change: Callable[[dict[str, str], list[str]], Any]) -> Damage:
    """Change the index's weight_map, given the names of the shards too."""

    def edit(content: dict[str, Any]) -> None:
        weight_map = content["weight_map"]
        result = change(weight_map, sorted(set(weight_map.values())))
        content["weight_map"] = weight_map if result is None else result

    return document(INDEX, edit)


def shard(number: int, make: Callable[[Path, Path], object]) -> Damage:
    """Replace a shard, given its path and that of the other one."""

    def damage(folder: Path) -> None:
        both = sorted(folder.glob("*.safetensors"))
        path, other = both[number], both[1 - number]
        path.unlink()
        make(path, other)

    return damage


def component(name: str, value: Any) -> Damage:
    """Set one of the top-level fields of tokenizer.json."""
    return document(TOKENIZER, lambda content: content.update({name: value}))


def text_config(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change the fields of the text model in config.json."""
    return document(CONFIG, lambda content: change(content["text_config"]))


def overlapping(header: dict[str, Any]) -> None:
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [0, 8]


def without_a_byte(content: dict[str, Any]) -> None:
    model = content["model"]
    del model["vocab"]["a"]
    model["merges"] = []


def unchanged(header: dict[str, Any]) -> None:
    pass


def shard_called(name: Any) -> Damage:
    return index(lambda names, shards: names.update({"lm_head.weight": name}))


def linked(path: Path, other: Path) -> None:
    other.unlink()
    path.symlink_to(other.name)
    other.symlink_to(path.name)


def ignoring_the_other(make: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    return lambda path, other: make(path)
