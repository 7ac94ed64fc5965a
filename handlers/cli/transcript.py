"""The conversation of `qwonnx chat`: its messages, as chat APIs have them, and their file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from qwonnx.handlers.chat.validation import Strict
from qwonnx.handlers.cli.failures import CommandError


class _Message(Strict):
    role: Literal["system", "user", "assistant"]
    content: str


class _File(Strict):
    messages: list[_Message]


@dataclass(slots=True)
class Transcript:
    """The messages that were said.

    system: the system message; empty for none.
    said: the others.
    """

    system: str = ""
    said: list[dict[str, Any]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All messages, as chat templates and chat APIs take them."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.said]

    def save(self, path: Path) -> None:
        """Write a new file.

        Raises:
            CommandError: it exists, or cannot be written.
        """
        content = msgspec.json.format(msgspec.json.encode({"messages": self.messages}), indent=2)
        try:
            with path.open("xb") as file:
                file.write(content + b"\n")
        except FileExistsError:
            raise CommandError(f"{path} exists: give another name") from None
        except OSError as error:
            raise CommandError(f"{path} cannot be written ({error.strerror})") from error

    @classmethod
    def load(cls, path: Path) -> Transcript:
        """Read a file that save() wrote.

        Raises:
            CommandError: it cannot be read, or is another kind of file.
        """
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_File).messages
        except OSError as error:
            raise CommandError(f"{path} cannot be read ({error.strerror})") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CommandError(f"{path} is not a conversation ({error})") from error
        system = found[0].content if found and found[0].role == "system" else ""
        rest = found[1:] if system else found
        return cls(system, [{"role": each.role, "content": each.content} for each in rest])
