"""A lock: the exact packages of a server with the hashes of their wheels, in the form that pip reads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LOCKS = Path(__file__).resolve().parent.parent / "locks"
_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)(?P<hashes>(?: --hash=sha256:[0-9a-f]{64})+)")


@dataclass(frozen=True, slots=True)
class Pin:
    """One package.

    hashes: sha256 in hexadecimal, of each wheel that may be installed.
    """

    name: str
    version: str
    hashes: tuple[str, ...]


def canonical_name(name: str) -> str:
    """A package's name as PyPI compares it; the builder of an image has no package for that."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lock_path(variant: str) -> Path:
    """The lock of a variant: of a server ("cpu", "cuda"), of what builds its wheel ("build"), of developers ("dev")."""
    return LOCKS / (f"{variant}.txt" if variant in ("build", "dev") else f"server-{variant}.txt")


def read_lock(path: Path) -> tuple[Pin, ...]:
    """The pins in their order.

    Raises:
        ValueError: a line is no pin with hashes, or a package is pinned twice.
    """
    joined = re.sub(r"\s*\\\n\s*", " ", path.read_text(encoding="utf-8"))
    pins: dict[str, Pin] = {}
    for line in joined.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = _PIN.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{path.name}: {line[:80]!r} has no exact version with sha256 hashes: make the lock again")
        name = canonical_name(match["name"])
        if name in pins:
            raise ValueError(f"{path.name} has {name} twice: make the lock again")
        hashes = tuple(part.rpartition(":")[2] for part in match["hashes"].split())
        pins[name] = Pin(name, match["version"], hashes)
    return tuple(pins.values())


def lock_text(pins: Iterable[Pin], heading: Iterable[str]) -> str:
    """A lock's text, sorted by name, so that a new lock differs only where packages do."""
    lines = [f"# {line}" for line in heading]
    for pin in sorted(pins, key=lambda each: each.name):
        parts = [f"{pin.name}=={pin.version}", *(f"    --hash=sha256:{each}" for each in sorted(pin.hashes))]
        lines.append(" \\\n".join(parts))
    return "".join(f"{line}\n" for line in lines)
