"""Names of places that are not on this machine: hub repositories and URLs, and how they are shown.

    owner/name, owner/name@revision     a repository of the Hugging Face hub
    s3://bucket/folder, https://...     a folder at a URL

A URL may have a user and a password, for HTTP. They are sent to its host, and never shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from qwonnx.export.errors import CheckpointError

_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]{1,200}))?")

_MAX_URL = 2000

# What may be a secret in another library's message: credentials in URLs, signatures in queries, tokens of the hub.
_SECRETS = (
    (re.compile(r"://[^/@\s]+@"), "://"),
    (re.compile(r"\?\S*"), ""),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "(token)"),
    (
        re.compile(
            r"(?i)\b(authorization|bearer|basic|password|secret|token|signature)\b(\s*[:=]\s*|\s+)[\w+/=.-]{8,}"
        ),
        r"\1",
    ),
)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the hub; revision is a branch, tag or commit, None: main."""

    name: str
    revision: str | None


@dataclass(frozen=True, slots=True)
class FolderUrl:
    """A folder at a URL. url is without credentials, and is the only part for display."""

    scheme: str
    url: str
    user: str | None = None
    password: str | None = None

    @property
    def folder_name(self) -> str:
        """The last part of the path, or the host if there is none."""
        parts = [unquote(part) for part in self.url.partition("://")[2].split("/") if part]
        return "".join(c if c.isprintable() else "?" for c in parts[-1])


def is_repository_name(name: str) -> bool:
    """Whether a name has the form of a hub repository's, with or without a revision."""
    return _REPOSITORY.fullmatch(name) is not None


def parse_repository(name: str, revision: str | None) -> Repository | None:
    """A hub repository; None if the name has another form.

    Raises:
        CheckpointError: the name has a revision, and another one is asked for.
    """
    found = _REPOSITORY.fullmatch(name)
    if found is None:
        return None
    if found[2] is not None and revision is not None and revision != found[2]:
        raise CheckpointError(f"{name} names a revision, and --revision another one ({revision!r}): leave one out")
    return Repository(found[1], revision if found[2] is None else found[2])


def is_url(name: str) -> bool:
    return "://" in name


def shown_name(name: str) -> str:
    """A name as a user gave it, without credentials; raises as parse_url does."""
    return parse_url(name).url if is_url(name) else name


def parse_url(name: str) -> FolderUrl:
    """Parse the URL of a folder.

    Raises:
        CheckpointError: it is malformed, has a query, or chains file systems; the message does not show it.
    """
    scheme = name.partition("://")[0].lower()
    if "::" in name:
        raise CheckpointError("a URL that chains file systems (::) is not read: give a folder's own URL")
    if len(name) > _MAX_URL or not name.isprintable() or " " in name:
        raise CheckpointError(f"a {scheme}:// URL is malformed (too long, or a space in it): write a space as %20")
    try:
        parts = urlsplit(name)
        user, password, port = parts.username, parts.password, parts.port
    except ValueError as error:
        raise CheckpointError(f"a {scheme}:// URL is malformed: check its host and port") from error
    if parts.query or parts.fragment:
        raise CheckpointError(
            f"a {scheme}:// URL has a query or a fragment, and a folder's URL has none: signed URLs of single files"
            " cannot be used; use the store's own URL and credentials"
        )
    has_secret = user is not None or password is not None
    if has_secret and scheme not in ("http", "https"):
        raise CheckpointError(
            f"a {scheme}:// URL has credentials in it: give them as the store's own client finds them (environment,"
            " configuration file), and leave them out of the URL"
        )
    host = (parts.hostname or "") + (f":{port}" if port is not None else "") if has_secret else parts.netloc
    path = parts.path.rstrip("/")
    if not host and not path:
        raise CheckpointError(f"{scheme}:// names no folder: give a bucket or a host, and a path")
    if any(part in (".", "..") for part in unquote(path).split("/")):
        raise CheckpointError(f"the {scheme}:// URL has . or .. in its path: write the folder's own path")
    decoded = [None if text is None else unquote(text) for text in (user, password)]
    return FolderUrl(scheme, f"{scheme}://{host}{path}", *decoded)


def reason_of(error: BaseException) -> str:
    """The first line of another library's message, without what may be a secret."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return "".join(c for c in text if c.isprintable())[:200]
