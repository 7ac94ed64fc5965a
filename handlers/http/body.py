"""Reading a request's body without trusting its size."""

from __future__ import annotations

from starlette.requests import Request

from qwonnx.handlers.errors import ErrorKind, ServiceError


async def read(request: Request, max_bytes: int) -> bytes:
    """The body, of which no more than max_bytes are ever held.

    Raises:
        ServiceError: 413, by Content-Length before anything is read, else as soon as the limit is passed; 415 for a
            body that is declared to be something else than JSON, which is also what keeps a web page from sending
            requests to a server on its visitor's machine.
        starlette.requests.ClientDisconnect: the client left.
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
