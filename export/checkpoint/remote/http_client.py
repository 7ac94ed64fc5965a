"""Ranges of bytes over HTTP, from the host that was asked for; the standard library's client."""

from __future__ import annotations

import email.message
import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from qwonnx.export.checkpoint.remote.addresses import reason_of
from qwonnx.export.checkpoint.remote.retries import TransientError, with_retries
from qwonnx.export.checkpoint.remote.store import changed, missing, not_allowed, unreachable
from qwonnx.export.errors import AccessError, CheckpointError

Result = TypeVar("Result")

_TIMEOUT = 30.0  # seconds without a byte
_MAX_REDIRECTS = 5
_PIECE_BYTES = 1 << 20
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_TOTAL = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class Answer:
    """Headers of a file: its size, and what tells its content from another. None: the server does not say."""

    size: int | None
    etag: str | None
    modified: str | None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the same host, or to any; secret headers only go to the same one."""

    max_redirections = _MAX_REDIRECTS

    def __init__(self, *, to_any_host: bool) -> None:
        self._to_any_host = to_any_host

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            fp.close()  # urllib closes it only where the redirect is followed
            raise AccessError(f"{old.hostname} redirects to a {new.scheme}:// URL, which is not followed: name it")
        is_same = old.hostname == new.hostname and _port(old) == _port(new)
        if not is_same and not self._to_any_host:
            fp.close()
            raise AccessError(
                f"{old.hostname} redirects to {new.hostname}, and a checkpoint is only read from the host that is"
                " named: give the URL there if you trust it"
            )
        made = urllib.request.Request(newurl, headers=req.headers, method=req.get_method())
        if is_same:
            made.unredirected_hdrs.update(req.unredirected_hdrs)
            made.unredirected_hdrs.pop("Host", None)
        return made


class HttpClient:
    """Asks for files.

    Args:
        secret_headers: that only the named host gets; called for every request.
        to_any_host: follow redirects to other hosts, without these headers.
        remedy: of an answer that the file may not be read.
    """

    def __init__(self, secret_headers: Callable[[], Mapping[str, str]], *, to_any_host: bool, remedy: str) -> None:
        self._secret_headers = secret_headers
        self._remedy = remedy
        self._opener = urllib.request.build_opener(_Redirects(to_any_host=to_any_host))

    def head(self, url: str) -> Answer | None:
        """A file's headers; None if there is no such file. Raises as `read` does."""

        def request() -> Answer | None:
            try:
                with self._open(url, "HEAD", {}) as response:
                    headers: email.message.Message = response.headers
            except FileNotFoundError:
                return None
            length = headers.get("Content-Length", "")
            size = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
            return Answer(size, headers.get("ETag"), headers.get("Last-Modified"))

        return self._tried(url, request)

    def read(self, url: str, start: int, end: int, size: int, etag: str | None = None) -> bytes:
        """Bytes from `start` to `end` of a file of `size` bytes.

        Args:
            etag: the file must still have; None: any.

        Raises:
            CheckpointError: the file has gone or changed, may not be read or only whole, or the host cannot be reached.
        """
        headers = {} if (start, end) == (0, size) else {"Range": f"bytes={start}-{end - 1}"}
        if etag is not None and not etag.startswith("W/"):
            headers["If-Match"] = etag

        def request() -> bytes:
            with self._open(url, "GET", headers) as response:
                if "Range" in headers and response.status != http.client.PARTIAL_CONTENT:
                    raise AccessError(
                        f"{url} cannot be read in ranges (status {response.status}): copy the checkpoint to a server"
                        " that serves them, or to this machine"
                    )
                if "Range" in headers and not _is_range(response.headers.get("Content-Range"), start, end, size):
                    raise changed(url)
                content: bytes = response.read(end - start + 1)
            if len(content) < end - start:
                raise TransientError(f"{len(content)} of {end - start} bytes came")
            if len(content) > end - start:
                raise changed(url)
            return content

        try:
            return self._tried(url, request)
        except FileNotFoundError as error:
            raise missing(url, "restore it, or check the URL") from error

    def copy(self, url: str, start: int, size: int, write: Callable[[bytes], None]) -> None:
        """Read a file from `start` to its end in pieces, and go on where the connection breaks.

        Args:
            url: of the file.
            start: bytes that are there already.
            size: of the file.
            write: called with every piece; its errors are not of the connection, and are raised.

        Raises:
            AccessError: see `read`.
        """
        place = start

        def request() -> None:
            nonlocal place
            before = place
            with self._open(url, "GET", {"Range": f"bytes={place}-"} if place else {}) as response:
                if place and response.status != http.client.PARTIAL_CONTENT:
                    raise AccessError(f"{url} cannot be continued (status {response.status}): try again later")
                if place and not _is_range(response.headers.get("Content-Range"), place, size, size):
                    raise changed(url)
                while place < size:
                    try:
                        content: bytes = response.read(min(_PIECE_BYTES, size - place))
                    except (OSError, http.client.HTTPException):
                        content = b""
                    if not content:
                        break
                    write(content)
                    place += len(content)
            if place == before:
                raise TransientError("the connection breaks")

        while place < size:
            try:
                self._tried(url, request)
            except FileNotFoundError as error:
                raise missing(url, "restore it, or try again later") from error

    def _open(self, url: str, method: str, headers: Mapping[str, str]) -> Any:
        request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", **headers}, method=method)
        for name, value in self._secret_headers().items():
            request.add_unredirected_header(name, value)
        try:
            return self._opener.open(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            raise self._error(url, error) from error

    def _error(self, url: str, error: urllib.error.HTTPError) -> Exception:
        if error.code in (401, 403):
            return not_allowed(url, self._remedy)
        if error.code in (404, 410):
            return FileNotFoundError(url)
        if error.code in (412, 416):
            return changed(url)
        if error.code in _TRY_AGAIN:
            return TransientError(f"status {error.code}", _seconds(error.headers.get("Retry-After")))
        return AccessError(f"{url} cannot be read (status {error.code}): check the URL")

    def _tried(self, url: str, request: Callable[[], Result]) -> Result:
        def once() -> Result:
            try:
                return request()
            except ssl.SSLCertVerificationError as error:
                raise AccessError(f"{url}: its certificate is not trusted ({reason_of(error)}): check it") from error
            except (FileNotFoundError, CheckpointError, TransientError):
                raise
            except urllib.error.URLError as error:
                if isinstance(error.reason, ssl.SSLCertVerificationError):
                    raise _untrusted(url, error.reason) from error
                raise TransientError(reason_of(error)) from error
            except (OSError, http.client.HTTPException) as error:
                raise TransientError(reason_of(error)) from error

        try:
            return with_retries(once)
        except TransientError as error:
            raise unreachable(url, str(error)) from error


def _untrusted(url: str, error: ssl.SSLCertVerificationError) -> AccessError:
    return AccessError(
        f"{url}: its certificate is not trusted ({reason_of(error)}): correct it, or set SSL_CERT_FILE to its authority"
    )


def _port(parts: SplitResult) -> int:
    return parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def _is_range(header: str | None, start: int, end: int, size: int) -> bool:
    found = _TOTAL.fullmatch(header or "")
    return found is not None and (int(found[1]), int(found[2])) == (start, end - 1) and found[3] in ("*", str(size))


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 6 else None
