"""Bytes of installed packages and of a tree of files, as a table of the largest."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.shipping.lock_file import canonical_name

# Bytecode is about as large as its source with comments; measured: numpy 1.21, anyio 1.48, jinja2 1.44.
_BYTECODE_SHARE = 1.5


@dataclass(frozen=True, slots=True)
class Part:
    """A package of an environment, or an entry of a tree."""

    name: str
    num_bytes: int


def installed_parts(requirements: Iterable[str]) -> list[Part]:
    """The packages of this environment that the requirements lead to, each with the bytes that pip's RECORD lists.

    That is what `pip install` of the requirements puts into an empty environment, without installing it again, which
    takes minutes. pip compiles every module; a module without bytecode here counts 1.5 times its source for it.

    Raises:
        importlib.metadata.PackageNotFoundError: a requirement is not installed here.
    """
    from packaging.requirements import Requirement  # not in the builder of an image

    found: dict[str, Part] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonical_name(requirement.name)
        distribution = importlib.metadata.distribution(name)
        first = name not in found
        if first:
            found[name] = Part(name, _recorded_bytes(distribution))
        elif not requirement.extras:
            continue
        for text in distribution.requires or []:
            following = Requirement(text)
            extras = ["", *requirement.extras]
            if following.marker is None or any(following.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(Requirement(text))
    return _largest_first(found.values())


def _recorded_bytes(distribution: importlib.metadata.Distribution) -> int:
    total = 0.0
    compiled: set[str] = set()
    sources: dict[str, int] = {}
    for file in distribution.files or []:
        path = Path(str(file.locate()))
        if not path.is_file():
            continue
        size = path.stat().st_size
        total += size
        if path.suffix == ".pyc":
            compiled.add(f"{path.parent.parent / path.name.partition('.')[0]}.py")
        elif path.suffix == ".py":
            sources[str(path)] = size
    return round(total + _BYTECODE_SHARE * sum(size for path, size in sources.items() if path not in compiled))


def tree_parts(root: Path) -> list[Part]:
    """The entries of a tree's first two levels, each with the bytes of all its files."""
    sizes: dict[str, int] = {}
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            name = "/".join(path.relative_to(root).parts[:2])
            sizes[name] = sizes.get(name, 0) + path.stat().st_size
    return _largest_first(Part(name, size) for name, size in sizes.items())


def total(parts: Iterable[Part]) -> int:
    return sum(part.num_bytes for part in parts)


def largest_table(parts: Sequence[Part], count: int = 10) -> str:
    """The sum, and the largest parts in MB (powers of 1000)."""
    lines = [f"{total(parts) / 1e6:8.1f} MB in all", *(f"{p.num_bytes / 1e6:8.1f} {p.name}" for p in parts[:count])]
    return "\n".join(lines)


def _largest_first(parts: Iterable[Part]) -> list[Part]:
    return sorted(parts, key=lambda part: (-part.num_bytes, part.name))
