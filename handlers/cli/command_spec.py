"""What a command takes, for its help, for completion and for configuration files: independent of the parser.

Commands are typer's functions or parsers of the standard library; typed_options.py and word_parser.py describe them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OptionSpec:
    """An option or an argument.

    field: its name in Python; of a setting, the setting's.
    names: as typed, "--thinking"; of an argument, its name in the help.
    negatives: names that switch it off, "--no-thinking".
    value: the type of its value by name, such as BYTES, N or cpu|cuda; None is a switch.
    help: sentences.
    default: as one would write it, or None.
    choices: all values, if they are few.
    """

    field: str
    names: tuple[str, ...]
    help: str
    negatives: tuple[str, ...] = ()
    value: str | None = None
    default: str | None = None
    choices: tuple[str, ...] = ()
    is_argument: bool = False
    is_required: bool = False
    repeats: bool = False

    @property
    def key(self) -> str:
        """Its name in a configuration file."""
        return self.names[-1].removeprefix("--").replace("-", "_").lower()


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """A command.

    name: all its words, "qwonnx generate".
    prose: paragraphs with a line break only between them.
    examples: lines, shown as they are.
    subcommands: with their first sentences.
    """

    name: str
    prose: tuple[str, ...]
    examples: tuple[str, ...]
    options: tuple[OptionSpec, ...]
    subcommands: tuple[tuple[str, str], ...] = ()

    @property
    def arguments(self) -> tuple[OptionSpec, ...]:
        return tuple(option for option in self.options if option.is_argument)


def prose_and_examples(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paragraphs of a description, and the lines after "Examples:" without their common indentation."""
    described, _, rest = text.partition("\nExamples:\n")
    paragraphs = tuple(" ".join(part.split()) for part in described.strip().split("\n\n"))
    lines = [line for line in rest.splitlines() if line.strip()]
    indent = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    return paragraphs, tuple(line[indent:].rstrip() for line in lines)
