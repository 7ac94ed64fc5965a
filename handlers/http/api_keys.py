"""Keys of an application's users: one from the environment, or several with names, from a file.

# one key a line, with limits of its own if it needs some; empty lines and lines like this one are skipped
billing: 3f9c...
support: a81e... max-requests=4 tokens-per-minute=60000

Only digests are kept: what a debugger or a core dump shows of a KeyRing opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from qwonnx.handlers.settings import ServerSettings, is_token
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.quantities import bytes_text

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME_OF_THE_ONLY_KEY = "default"  # QWONNX_API_KEY's beside a file
_MAX_FILE_BYTES = 1 << 20
_OTHERS = 0o077
_LIMIT = re.compile(r"(max-requests|tokens-per-minute)=([1-9][0-9]{0,11})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that requests may send.

    name: for logs and metrics.
    digest: SHA-256 of the secret, 32 bytes.
    owner: whose kept prefixes and capsules its requests use: see Engine.submit(). Empty: those of everybody.
    max_requests: that may be in flight at a time; None: no limit.
    tokens_per_minute: of prompts and answers; None: no limit.
    """

    name: str
    digest: bytes = field(repr=False)
    owner: str = field(default="", repr=False)
    max_requests: int | None = None
    tokens_per_minute: int | None = None


def digest_of(key: bytes) -> bytes:
    """What is kept of a key. Two keys that begin alike have digests that do not."""
    return hashlib.sha256(b"qwonnx key\0" + key).digest()


class KeyRing:
    """The keys of an application, which a changed file replaces.

    Args:
        settings: they name the keys.

    Raises:
        SettingsError: see api_keys().
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._keys = api_keys(settings)

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        """None: all requests are accepted."""
        return self._keys

    @property
    def can_change(self) -> bool:
        """Whether there is a file to read again."""
        return self._settings.api_keys is not None

    def find(self, given: bytes) -> ApiKey | None:
        """The key with this secret. The time depends on its length and on the number of keys alone."""
        digest, found = digest_of(given), None
        for each in self._keys:
            if hmac.compare_digest(digest, each.digest):
                found = each
        return found

    def reload(self) -> bool:
        """Read the file again, and log one line. A file that cannot be used leaves the keys as they are."""
        try:
            self._keys = api_keys(self._settings)
        except SettingsError as error:
            logger.error("the keys stay as they are: %s", error)
            return False
        logger.info("the file of keys was read again: %d keys are valid", len(self._keys))
        return True


def api_keys(settings: ServerSettings) -> tuple[ApiKey, ...]:
    """The keys that settings name; none: all requests are accepted.

    With a file, each key has its own prefixes and capsules, unless settings.share_prefixes. A single key without a
    file shares them with all who use it.

    Raises:
        SettingsError: the file cannot be read, or a line is not `name: key`; messages do not quote a key.
    """
    lines = [] if settings.api_key is None else [_Line(_NAME_OF_THE_ONLY_KEY, settings.api_key)]
    if settings.api_keys is not None:
        lines += _read(Path(settings.api_keys))
        for part in ("name", "key"):
            texts = [getattr(each, part) for each in lines]
            twice = next((each.name for each in lines if texts.count(getattr(each, part)) > 1), None)
            if twice is not None:
                raise SettingsError(f"api_keys has the {part} of {twice!r} twice: give each user one of its own")
    shares = settings.share_prefixes or settings.api_keys is None
    return tuple(_made(each, settings, shares=shares) for each in lines)


@dataclass(frozen=True, slots=True)
class _Line:
    """One key as it is written, with its own limits."""

    name: str
    key: str = field(repr=False)
    max_requests: int | None = None
    tokens_per_minute: int | None = None


def _made(line: _Line, settings: ServerSettings, *, shares: bool) -> ApiKey:
    return ApiKey(
        line.name,
        digest_of(line.key.encode()),
        "" if shares else _owner(line.key),
        line.max_requests or settings.key_max_requests,
        line.tokens_per_minute or settings.key_tokens_per_minute,
    )


def _owner(key: str) -> str:
    return hashlib.sha256(b"qwonnx owner\0" + key.encode()).hexdigest()


def _read(path: Path) -> list[_Line]:
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
        raise SettingsError(f"{path} has more than {bytes_text(_MAX_FILE_BYTES)}: give fewer keys")
    if status.st_mode & _OTHERS:
        logger.warning("other users of this machine can read the keys in %s: chmod 600 makes them private", path)
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    keys = [_parsed(path, number, line) for number, line in lines if line and not line.startswith("#")]
    if not keys:
        raise SettingsError(f"{path} has no key: give lines `name: key`")
    return keys


def _parsed(path: Path, number: int, line: str) -> _Line:
    name, _, rest = line.partition(":")
    key, *options = rest.split() or [""]
    limits = [_LIMIT.fullmatch(option) for option in options]
    given = {found[1]: int(found[2]) for found in limits if found is not None}
    if not _NAME.fullmatch(name.strip()) or not is_token(key) or len(given) < len(options):
        raise SettingsError(
            f"line {number} of {path} is not `name: key`: a name has letters, digits and . _ -, a key has no spaces;"
            " max-requests=N and tokens-per-minute=N may follow"
        )
    return _Line(name.strip(), key, given.get("max-requests"), given.get("tokens-per-minute"))
