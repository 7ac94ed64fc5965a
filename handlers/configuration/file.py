"""Configuration files: the same settings as variables, and the same options as commands, in TOML.

    max_num_seqs = 16          # QWONNX_MAX_NUM_SEQS, for all commands

    [serve]                    # for one command: its options, and settings
    port = 9000

A file is checked when it is read: names, and the values of settings. Options are checked by the command's own parser.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import date, time
from pathlib import Path
from typing import Any

from qwonnx.handlers.configuration.environment import PREFIX, variables
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.settings import RuntimeSettings, read_environment

_MAX_BYTES = 1 << 20
# Options whose names differ from those of the settings that they set.
ALIASES = {"threads": "num_threads", "memory": "memory_bytes", "adapter": "adapters", "cors_origin": "cors_origins"}
RUNTIME_FIELDS = frozenset(field.name for field in fields(RuntimeSettings))
SERVER_FIELDS = frozenset(field.name for field in fields(ServerSettings))
SECRETS = frozenset(
    field.name for each in (ServerSettings, RuntimeSettings) for field in fields(each) if field.metadata.get("secret")
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A value of a file.

    key: as written, with _ for -.
    value: a text, a switch, or texts of a list.
    path: of the file.
    table: the command's name; None is the top of the file.
    """

    key: str
    value: str | bool | tuple[str, ...]
    path: str
    table: str | None

    @property
    def text(self) -> str:
        """As a variable would have it."""
        if isinstance(self.value, bool):
            return "true" if self.value else "false"
        return self.value if isinstance(self.value, str) else ",".join(self.value)

    @property
    def where(self) -> str:
        return self.path if self.table is None else f"{self.path} [{self.table}]"


def read_files(paths: Iterable[str], commands: Collection[str]) -> list[Entry]:
    """The entries of all files. Of entries with one key and table, only the first file's stays.

    Args:
        paths: of files, the most important one first.
        commands: the names of tables.

    Raises:
        SettingsError: a file cannot be read, is not TOML, has a table that is no command, a value that has no text, or
            a secret that other users may read.
    """
    found: dict[tuple[str | None, str], Entry] = {}
    for path in paths:
        for entry in _entries(path, commands):
            found.setdefault((entry.table, entry.key), entry)
    return list(found.values())


def variable_of(key: str) -> str | None:
    """The variable of a setting's key, or None."""
    name = f"{PREFIX}{ALIASES.get(key, key).upper()}"
    return name if name in _names() else None


def check_setting(entry: Entry, variable: str) -> None:
    """
    Raises:
        SettingsError: the value is malformed or out of range; the message names file and key, and quotes no secret.
    """
    field = variable.removeprefix(PREFIX).lower()
    for settings in (RuntimeSettings, ServerSettings):
        if field in (each.name for each in fields(settings)):
            try:
                read_environment(settings, {variable: entry.text})
            except SettingsError as error:
                said = str(error).removeprefix(f"{variable}: ").replace(variable, entry.key)
                raise SettingsError(f"{entry.where}: {said}") from error


def unknown(entry: Entry, known: Iterable[str], others: Mapping[str, Collection[str]]) -> SettingsError:
    """The error for a key that nothing has.

    Args:
        entry: with the key.
        known: keys that may be there.
        others: keys of the tables, if it is at the top of the file.
    """
    from difflib import get_close_matches

    homes = [name for name, keys in others.items() if entry.key in keys]
    near = get_close_matches(entry.key, list(known), n=1)
    if homes:
        remedy = f"write it below [{homes[0]}]"
    elif near:
        remedy = f"did you mean {near[0]}?"
    else:
        remedy = "qwonnx config lists all" if entry.table is None else f"qwonnx {entry.table} --help lists all"
    return SettingsError(f"{entry.where}: there is no setting {entry.key}: {remedy}")


def setting_keys() -> list[str]:
    """Keys that may be at the top of a file."""
    return [name.removeprefix(PREFIX).lower() for name in _names()]


def _names() -> list[str]:
    return [variable.name for variable in variables()]


def _entries(path: str, commands: Collection[str]) -> Iterable[Entry]:
    document = _document(path)
    for key, value in document.items():
        if not isinstance(value, dict):
            yield _entry(key, value, path, None)
            continue
        if key not in commands:
            from difflib import get_close_matches

            near = get_close_matches(key, list(commands), n=1)
            remedy = f"did you mean [{near[0]}]?" if near else "a table has the name of a command"
            raise SettingsError(f"{path}: there is no command {key}: {remedy}")
        for name, inner in value.items():
            yield _entry(name, inner, path, key)


def _document(path: str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise SettingsError(f"cannot read {path} ({error.strerror}): check QWONNX_CONFIG or the file") from error
    if len(content) > _MAX_BYTES:
        raise SettingsError(f"{path} is larger than a megabyte: it is not a configuration file")
    try:
        document = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{path} is not TOML ({str(error) or 'nested too deeply'}): mend it") from error
    tables = (table for table in document.values() if isinstance(table, dict))
    keys = {ALIASES.get(_plain(key), _plain(key)) for table in (document, *tables) for key in table}
    if os.name == "posix" and mode & 0o077 and (secrets := sorted(keys & SECRETS)):
        raise SettingsError(f"{path} has {secrets[0]}, and other users may read it: chmod 600 {path}")
    return document


def _plain(key: str) -> str:
    return key.replace("-", "_").lower()


def _entry(key: str, value: Any, path: str, table: str | None) -> Entry:
    where = path if table is None else f"{path} [{table}]"
    if isinstance(value, bool):
        return Entry(_plain(key), value, path, table)
    parts = value if isinstance(value, list) else [value]
    if any(isinstance(part, dict | list | date | time | bool) for part in parts):
        raise SettingsError(
            f"{where}: {key} is neither a text, a number, true or false, nor a list of texts: write one"
        )
    texts = tuple(str(part) for part in parts)
    return Entry(_plain(key), texts if isinstance(value, list) else texts[0], path, table)
