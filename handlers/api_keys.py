"""Keys of an application's users: one from the environment, or several with names, from a file.

# one key a line; empty lines and lines like this one are skipped
billing: 3f9c...
support: a81e...
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from qwonnx.handlers.settings import ServerSettings, is_token
from qwonnx.runtime.errors import SettingsError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME_OF_THE_ONLY_KEY = "default"  # QWONNX_API_KEY's beside a file
_MAX_FILE_BYTES = 1 << 20
_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that requests may send.

    name: for logs.
    key: the secret.
    owner: whose kept prefixes and capsules its requests use: see Engine.submit(). Empty: those of everybody.
    """

    name: str
    key: str = field(repr=False)
    owner: str = field(default="", repr=False)


def api_keys(settings: ServerSettings) -> tuple[ApiKey, ...]:
    """The keys that settings name; none: all requests are accepted.

    With a file, each key has its own prefixes and capsules, unless settings.share_prefixes. A single key without a
    file shares them with all who use it.

    Raises:
        SettingsError: the file cannot be read, or a line is not `name: key`; messages do not quote a key.
    """
    only = [] if settings.api_key is None else [ApiKey(_NAME_OF_THE_ONLY_KEY, settings.api_key)]
    if settings.api_keys is None:
        return tuple(only)
    keys = [*only, *_read(Path(settings.api_keys))]
    for part in ("name", "key"):
        texts = [getattr(each, part) for each in keys]
        twice = next((each.name for each in keys if texts.count(getattr(each, part)) > 1), None)
        if twice is not None:
            raise SettingsError(f"api_keys has the {part} of {twice!r} twice: give each user one of its own")
    if settings.share_prefixes:
        return tuple(keys)
    return tuple(ApiKey(each.name, each.key, _owner(each.key)) for each in keys)


def _owner(key: str) -> str:
    return hashlib.sha256(b"qwonnx owner\0" + key.encode()).hexdigest()


def _read(path: Path) -> list[ApiKey]:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_MAX_FILE_BYTES + 1)
        text = content.decode("utf-8")
    except OSError as error:
        raise SettingsError(f"cannot read the keys in {path} ({error.strerror}): give a file of `name: key`") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not text: give a file with lines `name: key`") from error
    if len(content) > _MAX_FILE_BYTES:
        raise SettingsError(f"{path} has more than {_MAX_FILE_BYTES >> 20} MiB: give fewer keys")
    if status.st_mode & _OTHERS:
        logger.warning("other users of this machine can read the keys in %s: chmod 600 makes them private", path)
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    keys = [_parsed(path, number, line) for number, line in lines if line and not line.startswith("#")]
    if not keys:
        raise SettingsError(f"{path} has no key: give lines `name: key`")
    return keys


def _parsed(path: Path, number: int, line: str) -> ApiKey:
    name, _, key = (part.strip() for part in line.partition(":"))
    if not _NAME.fullmatch(name) or not is_token(key):
        raise SettingsError(
            f"line {number} of {path} is not `name: key`: a name has letters, digits and . _ -, a key has no spaces"
        )
    return ApiKey(name, key)
