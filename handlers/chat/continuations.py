"""Answers that a deadline cut off, and go on in another request, in any instance, without reading the prompt again.

    offer()   state of prompt and answer -> capsule in the store, named by a signed token
    take()    token + the same request -> capsule in the engine's prefix cache, and the tokens of the answer so far

A token is good for one request: take() removes the capsule, and a refused request gives it back. Two requests that use
a token at the same moment may both succeed where the store is remote: such stores cannot say who removed a file.

All methods block. They know no API and no HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from msgspec import Struct

from qwonnx.handlers import errors
from qwonnx.handlers.chat.capsule_store import CapsuleStore, CapsuleStoreError
from qwonnx.handlers.chat.continuation_token import Continuation, ContinuationSigner, digest
from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.runtime.cache.capsule import max_capsule_bytes
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import CapsuleError
from qwonnx.runtime.sampling.entropy import fresh_id
from qwonnx.runtime.sampling.params import SamplingParams

PARAMETER = "continuation"
_DIGEST_BYTES = 32


class Asker(Struct, frozen=True):
    """Who asks.

    name: of the API key.
    owner: see Engine.submit().
    """

    name: str = ""
    owner: str = ""

    @property
    def digest(self) -> bytes:
        return digest(self.name.encode(), self.owner.encode())


class Resumed(Struct, frozen=True):
    """An answer that goes on.

    generated: its tokens so far.
    name, data: of its capsule, which was removed from the store.
    """

    generated: tuple[int, ...]
    name: str
    data: bytes


class Continuations:
    """The continuations of one application.

    Args:
        store: of capsules.
        secret: signs tokens.
        seconds: for which a token is valid.
    """

    def __init__(self, store: CapsuleStore, secret: str, seconds: float) -> None:
        self._store = store
        self._signer = ContinuationSigner(secret)
        self._seconds = seconds

    def offer(
        self,
        engine: Engine,
        prompt: Sequence[int],
        generated: Sequence[int],
        request: bytes,
        asker: Asker,
        *,
        seconds: float,
    ) -> str | None:
        """Store the state of an answer that was aborted with its state kept.

        Args:
            engine: that has the state.
            prompt, generated: all tokens; at least one generated.
            request: request_digest().
            asker: of the request.
            seconds: for the store.

        Returns:
            a token, or None: the state was not kept, or the store did not take it in time.

        Raises:
            EngineClosedError: the engine was closed.
        """
        known = [*prompt, *generated][:-1]
        if engine.kept_tokens(known, owner=asker.owner) != len(known):
            return None
        name = fresh_id()
        written = self._store.put(engine, name, known, asker.owner, seconds=seconds)
        if written is None:
            return None
        return self._signer.token(
            Continuation(
                name=name,
                expires=int(time.time() + self._seconds),
                artifact=engine.artifact.id,
                key=asker.digest,
                request=request,
                capsule=written,
                num_tokens=len(known),
                last_token=generated[-1],
            )
        )

    def take(self, engine: Engine, token: str, prompt: Sequence[int], request: bytes, asker: Asker) -> Resumed:
        """Load the state of an answer, and remove it from the store.

        Args:
            engine: that goes on.
            token: of the client.
            prompt: of the request, which must be the first one again.
            request: request_digest().
            asker: of the request.

        Raises:
            ServiceError: 400, the token is not ours, expired, was used, or is of another artifact, key or request; 503,
                the store does not answer.
            EngineClosedError: the engine was closed.
        """
        said = self._signer.read(token)
        if said is None:
            raise _refused("continuation is not a token of this server: send it as it was given", "invalid")
        if said.expires <= time.time():
            raise _refused("the continuation has expired: send the request without it", "expired")
        if said.artifact != engine.artifact.id:
            raise _refused("the continuation is of another model: send the request without it", "mismatch")
        if said.key != asker.digest:
            raise _refused("the continuation is of another API key: send the request without it", "mismatch")
        if said.request != request or said.num_tokens < len(prompt):
            message = "the continuation is of another request: send the same messages and parameters again"
            raise _refused(message, "mismatch")
        at_most = max_capsule_bytes(engine.artifact.decoder.states, said.num_tokens)
        try:
            data = self._store.take(said.name, at_most)
        except CapsuleStoreError:
            raise unavailable() from None
        if data is None:
            raise _refused("the continuation was used, or its state was removed: send the request without it", "used")
        try:
            if data[-_DIGEST_BYTES:] != said.capsule:
                raise CapsuleError("the capsule is another one")
            tokens = engine.capsule_tokens(data)
            if tokens[: len(prompt)] != tuple(prompt) or len(tokens) != said.num_tokens:
                raise CapsuleError("the capsule has other tokens")
            engine.load_capsule(data, owner=asker.owner)
        except CapsuleError as error:
            raise _refused("the continuation's state is damaged: send the request without it", "damaged") from error
        return Resumed((*tokens[len(prompt) :], said.last_token), said.name, data)

    def give_back(self, resumed: Resumed) -> None:
        """The request was refused after take(): its token may be used again."""
        self._store.give_back(resumed.name, resumed.data)


def request_digest(prompt: Sequence[int], params: SamplingParams, *, one_call: bool) -> bytes:
    """What an answer follows from: the prompt, how it is sampled and its form."""
    values = {field.name: getattr(params, field.name) for field in fields(params)}
    values["logit_bias"] = sorted(params.logit_bias.items())
    tokens = np.asarray(prompt, np.int32).tobytes()
    return digest(tokens, repr(sorted(values.items())).encode("utf-8", "replace"), str(one_call).encode())


def unsupported() -> ServiceError:
    """The server gives no continuations."""
    return _refused("this server gives no continuations: send the request without it", "unsupported")


def unavailable() -> ServiceError:
    """The store does not answer."""
    message = "the store of the continuation's state does not answer: try again later"
    headers: dict[str, Any] = {"retry-after": str(errors.RETRY_AFTER_SECONDS)}
    return ServiceError(ErrorKind.UNAVAILABLE, 503, message, code="continuation_unavailable", headers=headers)


def _refused(message: str, reason: str) -> ServiceError:
    return errors.invalid(message, PARAMETER, f"continuation_{reason}")
