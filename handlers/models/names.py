"""Names of pulled models.

    qwen3.5-0.8b                    the model that was pulled from Qwen/Qwen3.5-0.8B
    qwen3.5-0.8b:balanced           in this recipe, if there are several
    Qwen/Qwen3.5-0.8B               the same by its repository
    qwen3.5-0.8b@v2:best            from this revision

A name becomes a folder's name, so it has no character that a file system gives a meaning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from qwonnx.handlers.models.errors import ModelStoreError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TEXT = re.compile(
    r"((?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,200}))?(?::([\w.-]{1,64}))?", re.ASCII
)
_FORM = "a name is as in qwen3.5-0.8b, qwen3.5-0.8b:best or Qwen/Qwen3.5-0.8B"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a user asks for: a name or a repository ("owner/name"), and perhaps a revision and a recipe."""

    name: str
    revision: str | None
    recipe: str | None

    @property
    def is_repository(self) -> bool:
        return "/" in self.name


@dataclass(frozen=True, slots=True)
class ModelName:
    """The whole name of a pulled model. revision None is the source's own main."""

    name: str
    revision: str | None
    recipe: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ModelStoreError(f"{self.name[:96]!r} is not a model's name: use a-z, 0-9, '.', '_' and '-'")
        if not _LABEL.fullmatch(self.recipe):
            raise ModelStoreError(f"{self.recipe[:64]!r} is not a recipe's name: use letters, digits, '.', '_' and '-'")

    def __str__(self) -> str:
        return f"{self.name}{'' if self.revision is None else f'@{self.revision}'}:{self.recipe}"

    @property
    def folder_name(self) -> str:
        """One part of a path, different for each name."""
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        return f"{self.name}{revision}+{self.recipe}"


def parse_reference(text: str) -> Reference:
    """
    Raises:
        ModelStoreError: the text does not have the form of a name.
    """
    found = _TEXT.fullmatch(text)
    if found is None:
        shown = text[:80] if text.isprintable() else repr(text[:80])
        raise ModelStoreError(f"{shown} is neither a folder nor a model's name: {_FORM}")
    return Reference(found[1], found[2], found[3])


def name_from(text: str) -> str:
    """A name made from that of a repository or a folder: lower case, other characters replaced."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).lstrip("._-")[:96]
    if not plain:
        raise ModelStoreError(f"{text[:80]!r} makes no name for the model: give one with --name")
    return plain
