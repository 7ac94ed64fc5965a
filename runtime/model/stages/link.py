"""The engine's connection to one stage: made, used, lost, and made again.

A stage that restarts, or whose connection broke, has no states any more. So states belong to an epoch, which ends with
the connection. Operations of an ended epoch are dropped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from qwonnx.runtime.artifact.manifest import ArtifactError, Manifest, StageFacts, parse_manifest
from qwonnx.runtime.errors import SessionError, SettingsError, StageLostError
from qwonnx.runtime.model.stages.address import StageAddress
from qwonnx.runtime.model.stages.operations import Operation, packed
from qwonnx.runtime.model.stages.step import StageLimits
from qwonnx.runtime.model.stages.wire import Frames, Kind, Part, WireError, introduce, message_of

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0
_STEP_SECONDS = 600.0  # a prompt's chunk may wait for experts from a disk; a machine that vanished is noticed sooner
_MOST_WAITING = 2048  # operations that wait for the next frame
_SMALL_ANSWER = 4096  # bytes


class StageLink:
    """One stage. Calls from any thread; each waits for the one before.

    Attributes:
        name: for messages.
        manifest: of its artifact, after the first connection; a stage with another one is refused later.
        epoch: grows when the states in the stage are lost.
        is_connected: whether steps can run.
    """

    def __init__(self, address: StageAddress, facts: StageFacts, key: str | None) -> None:
        self.name = f"stage {facts.number} of {facts.count} at {address}"
        self.epoch = 0
        self.is_connected = False
        self._address, self._facts, self._key = address, facts, key
        self._manifest: Manifest | None = None
        self._limits: StageLimits | None = None
        self._frames: Frames | None = None
        self._lock = threading.RLock()
        self._waiting: deque[Operation] = deque()
        self._used_at = time.monotonic()

    @property
    def manifest(self) -> Manifest:
        assert self._manifest is not None, "not connected yet"
        return self._manifest

    def connect(self) -> None:
        """Connect; does nothing if it is connected.

        Raises:
            SettingsError: another stage, or a stage of another export, answers there.
            StageLostError: nothing answers, or not as a stage does.
        """
        with self._lock:
            if self.is_connected:
                return
            try:
                frames = Frames(self._address.connect(_CONNECT_SECONDS))
            except OSError as error:
                raise self._lost_error(error.strerror or str(error)) from error
            try:
                self._check(parse_manifest(introduce(frames, self._key), self.name))
                frames.settimeout(_STEP_SECONDS)
                self._frames, self.is_connected = frames, True
                if self._limits is not None:
                    self.open(self._limits)
            except (WireError, ArtifactError) as error:
                frames.close()
                raise self._lost_error(str(error)) from error
            except BaseException:
                self._frames, self.is_connected = None, False
                frames.close()
                raise

    def open(self, limits: StageLimits) -> None:
        """Have the stage make its rows, now and after each connection.

        Raises:
            StageLostError: it cannot, or is gone.
        """
        self._limits = limits
        self.exchange(Kind.OPEN, [limits.packed()])

    def add(self, operation: Operation, epoch: int) -> None:
        """Have the stage do something before the next step, if the epoch has not ended. From any thread."""
        if epoch == self.epoch:
            self._waiting.append(operation)
            if len(self._waiting) > _MOST_WAITING:
                with suppress(StageLostError):  # the next step says so
                    self.exchange(Kind.PING)

    def exchange(self, kind: Kind, parts: Sequence[Part] = (), max_bytes: int = _SMALL_ANSWER) -> list[memoryview]:
        """Send a frame with the waiting operations, and return the parts of the answer.

        Args:
            kind, parts: the frame.
            max_bytes: of the answer.

        Raises:
            SessionError: the stage failed to run the step.
            StageLostError: the stage is gone, or was; its states with it.
        """
        if not self.is_connected:  # without waiting for an attempt to connect
            raise self._lost_error("connecting again")
        with self._lock:
            if self._frames is None:
                raise self._lost_error("connecting again")
            self._used_at = time.monotonic()
            operations = [self._waiting.popleft() for _ in range(len(self._waiting))]
            try:
                self._frames.send(kind, [packed(operations), *parts])
                answer, received = self._frames.receive(max(max_bytes, _SMALL_ANSWER))
                if answer is Kind.BROKEN and received:
                    raise WireError(message_of(received[0]))
                if answer not in (Kind.DONE, Kind.FAILED):
                    raise WireError(f"it answers with {answer.name}")
            except WireError as error:
                self._lose()
                logger.warning("%s is lost (%s): connecting again", self.name, error)
                raise self._lost_error(str(error)) from error
            if answer is Kind.FAILED:
                raise SessionError(f"{self.name} failed: {message_of(received[0]) if received else 'no reason'}")
            return received

    def tend(self, seconds: float) -> None:
        """Connect again, or see whether an idle stage is still there. Does not wait for a running step.

        Args:
            seconds: without a frame, after which a stage is asked.

        Raises:
            StageLostError: it is not there.
            SettingsError: another stage answers there.
        """
        if not self.is_connected:
            self.connect()
            logger.info("%s is connected again", self.name)
        elif time.monotonic() - self._used_at >= seconds and self._lock.acquire(blocking=False):
            try:
                self.exchange(Kind.PING)
            finally:
                self._lock.release()

    def close(self) -> None:
        """End the connection. A running step ends first."""
        with self._lock:
            self._lose()

    def _lose(self) -> None:
        if self._frames is not None:
            self._frames.close()
        self._frames, self.is_connected = None, False
        self.epoch += 1
        self._waiting.clear()

    def _lost_error(self, reason: str) -> StageLostError:
        return StageLostError(f"{self.name} is lost ({reason}): send the request again when the server is ready")

    def _check(self, manifest: Manifest) -> None:
        if manifest.stage != self._facts:
            found = manifest.stage
            other = "of another export" if found.export != self._facts.export else ""
            raise SettingsError(
                f"{self.name} is expected, and stage {found.number} of {found.count} {other}answers there:"
                " name the stages of one export in their order"
            )
        if self._manifest not in (None, manifest):
            raise SettingsError(f"{self.name} has another artifact than before: start the server again")
        self._manifest = manifest
