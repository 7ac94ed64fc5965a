"""Read a request's body, with a limit for its size."""

from __future__ import annotations

from starlette.requests import Request

from qwonnx.handlers.errors import ErrorKind, ServiceError


async def read(request: Request, max_bytes: int) -> bytes:
    """Read the body; at most max_bytes of it are kept in memory.

    Raises:
        ServiceError: 413, by Content-Length before the body is read, or as soon as it exceeds the limit; 415, its
            declared type is not JSON. The 415 also prevents a web page from sending requests to a server on its
            visitor's machine.
        starlette.requests.ClientDisconnect: the client disconnected.
    """
    media_type = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if media_type != "application/json":
        message = "the body's content-type is not application/json: set that header"
        raise ServiceError(ErrorKind.INVALID, 415, message, code="invalid_type")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        pieces.append(piece)
    return b"".join(pieces)


def _too_large(max_bytes: int) -> ServiceError:
    message = f"the body has more than {max_bytes} bytes: shorten the conversation"
    return ServiceError(ErrorKind.TOO_LARGE, 413, message, code="body_too_large", headers={"connection": "close"})
