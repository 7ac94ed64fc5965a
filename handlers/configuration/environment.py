"""All QWONNX_* variables of the commands and the servers, from the settings that they set.

The docstring of a settings class describes each field, so help, documentation and code cannot differ.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any

from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.settings import RuntimeSettings

PREFIX = "QWONNX_"
_FOR_TESTS = "QWONNX_TEST_"


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable.

    name: QWONNX_...
    default: as one would write it; empty without one.
    meaning: what it sets, in a sentence or two.
    """

    name: str
    default: str
    meaning: str


_OF_NO_SETTINGS = (
    Variable(
        f"{PREFIX}ARTIFACT",
        "",
        "folder of the artifact, or a pulled model's name, for functions, uvicorn, and a `qwonnx serve` that is given "
        "none.",
    ),
    Variable(
        f"{PREFIX}INVOKE_MODE",
        "RESPONSE_STREAM",
        "how our runtime for AWS Lambda answers function URLs and REST APIs: RESPONSE_STREAM, or BUFFERED where the "
        "function is configured so.",
    ),
    Variable(
        f"{PREFIX}CACHE",
        "",
        "folder for pulled models; by default qwonnx in $XDG_CACHE_HOME, or ~/.cache/qwonnx.",
    ),
    Variable(
        f"{PREFIX}CONFIG",
        "",
        "configuration file to read in the place of ./qwonnx.toml and ~/.config/qwonnx/qwonnx.toml; empty reads none.",
    ),
    Variable(f"{PREFIX}NATIVE_LIBRARY", "", "file of the native kernels, if it is not the installed one."),
    Variable(f"{PREFIX}NATIVE_INSTRUCTIONS", "", "instruction set of the native kernels, if not the fastest."),
    Variable(f"{PREFIX}STARTUP_FILE", "", "file that gets the phases of the start as JSON; for benchmarks."),
    Variable(f"{PREFIX}NATIVE_BUILD", "true", "0 installs qwonnx without compiling its native kernels."),
)


def variables() -> tuple[Variable, ...]:
    """Every variable, in the order of the documentation."""
    return (*_OF_NO_SETTINGS, *_variables_of(ServerSettings), *_variables_of(RuntimeSettings))


def setting_defaults() -> dict[str, str]:
    """Defaults of settings by their fields' names, as one would write them; empty texts are no default."""
    return {variable.name.removeprefix(PREFIX).lower(): variable.default for variable in variables()}


def warnings_about(environment: Mapping[str, str] | None = None) -> list[str]:
    """A sentence for each variable that looks like one of qwonnx and is none. Values are not told.

    Args:
        environment: the variables; None is os.environ.
    """
    source = os.environ if environment is None else environment
    given = sorted(name for name in source if name.startswith(PREFIX) and not name.startswith(_FOR_TESTS))
    known = {variable.name for variable in variables()} if given else set()
    return [_warning(name, known) for name in given if name not in known]


def _warning(name: str, known: Collection[str]) -> str:
    from difflib import get_close_matches  # seldom needed

    likely = get_close_matches(name.removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in known], n=1)
    remedy = f"did you mean {PREFIX}{likely[0]}?" if likely else "docs/configuration.md lists all"
    return f"{name} is not a variable of qwonnx and has no effect: {remedy}"


def _variables_of(settings: type[Any]) -> Iterator[Variable]:
    from inspect import getdoc  # only the documentation and a misspelt variable need it

    meanings = _meanings(getdoc(settings) or "")
    for field in fields(settings):
        yield Variable(f"{PREFIX}{field.name.upper()}", _written(field), meanings[field.name])


def _meanings(doc: str) -> dict[str, str]:
    """The lines `name: meaning` of a docstring; further lines of a meaning are indented."""
    found = re.findall(r"^(\w+): (.*(?:\n {4}.*)*)", doc, re.MULTILINE)
    return {name: re.sub(r"\bNone\b", "unset", " ".join(meaning.split())) for name, meaning in found}


def _written(field: Field[Any]) -> str:
    """A default as the variable would set it."""
    value: Any = field.default
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if field.name.endswith("_bytes") and value and value % (1 << 20) == 0:
        return f"{value >> 30}GiB" if value % (1 << 30) == 0 else f"{value >> 20}MiB"
    return f"{value:g}" if isinstance(value, float) else str(value)
