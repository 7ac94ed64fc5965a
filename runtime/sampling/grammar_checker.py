"""The server's side of grammar_check.py: processes that check grammars, started on demand, killed at a deadline.

A process is kept for the next grammar; it ends itself after a minute without one. A check that nobody waits for any
more is abandoned: its process is killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from qwonnx.runtime.sampling.grammar_check import Question, Reply  # imports llguidance, which takes 0.1 s

CHECK_SECONDS = 0.5  # of processor time for one grammar: an enum of 5,000 texts takes 0.1, and trying out 0.2
_WAIT_SECONDS = 5.0  # on the clock: the process starts, and shares the processors with the model
_INHERITED = ("LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "SYSTEMROOT")  # all that the process needs; no secrets

_TOO_MUCH = f"it needs more than {CHECK_SECONDS:g} s of a processor, or too much memory or stack, to compile"


class Verdict(Struct, frozen=True):
    """What a check found.

    reason: why the grammar is refused, or an empty text.
    num_bytes: what it holds once it is compiled; 0 if it is refused.
    """

    reason: str
    num_bytes: int = 0


class Check:
    """One check, which another thread may abandon."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.is_abandoned = False

    def abandon(self) -> None:
        """End the check: its process is killed. Does nothing if it has ended."""
        with self._lock:
            self.is_abandoned = True
            if self._process is not None:
                self._process.kill()

    def enter(self, process: subprocess.Popen[bytes]) -> None:
        """For the checker: this process does the work."""
        with self._lock:
            self._process = process
            if self.is_abandoned:
                process.kill()

    def leave(self) -> None:
        """For the checker: the process has answered, or has ended."""
        with self._lock:
            self._process = None


class GrammarChecker:
    """Checks grammars in separate processes, one for each thread that checks at a time. Safe to use from several."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[subprocess.Popen[bytes]] = []
        self._busy: set[Check] = set()
        self._is_closed = False

    def verdict(self, grammar: str, special_tokens: Sequence[str], check: Check) -> Verdict:
        """Whether a grammar may be compiled, and what it then holds. Blocks, for seconds at most.

        Args:
            grammar: as llguidance's grammar_from_...() writes it.
            special_tokens: that it may name, an end token first.
            check: new; abandon() ends the wait early, with any reason.
        """
        question: Question = {"grammar": grammar, "special_tokens": special_tokens, "seconds": CHECK_SECONDS}
        line = json.dumps(question).encode() + b"\n"
        with self._lock:
            if self._is_closed:
                return Verdict("the engine is closed")
            self._busy.add(check)
            process = self._idle.pop() if self._idle else None
        try:
            verdict = None
            if process is not None and process.poll() is not None:  # a minute passed, or the system killed it
                _end(process)
                process = None
            if process is not None:
                verdict = self._asked(process, line, check)
                if verdict is None and process.returncode != 0:
                    return Verdict(_TOO_MUCH)
            # Without a kept process, or if that one ended itself just now:
            if verdict is None:
                verdict = self._asked(_started(), line, check)
            return Verdict(_TOO_MUCH) if verdict is None else verdict
        except OSError as error:
            return Verdict(f"it cannot be checked: {error.strerror}")
        finally:
            with self._lock:
                self._busy.discard(check)

    def rest(self) -> None:
        """End the processes that wait for a grammar."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            _end(process)

    def close(self) -> None:
        """Abandon running checks and end the processes."""
        with self._lock:
            self._is_closed = True
            busy, idle = list(self._busy), self._idle
            self._idle = []
        for check in busy:
            check.abandon()
        for process in idle:
            _end(process)

    def _asked(self, process: subprocess.Popen[bytes], line: bytes, check: Check) -> Verdict | None:
        """The answer, or None if the process ended without one; its return code is 0 if it ended itself."""
        assert process.stdin is not None
        assert process.stdout is not None
        check.enter(process)
        # The clock kills the process, which ends both the write and the read.
        clock = threading.Timer(_WAIT_SECONDS, process.kill)
        clock.daemon = True
        clock.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        finally:
            clock.cancel()
            check.leave()
        if not answer.endswith(b"\n"):
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
            _end(process)
            return None
        reply: Reply = json.loads(answer)
        if reply["ends"] or check.is_abandoned or not self._is_kept(process):
            _end(process)
        return Verdict(reply["reason"], reply["num_bytes"])

    def _is_kept(self, process: subprocess.Popen[bytes]) -> bool:
        """Keep a process for the next grammar, unless the checker was closed."""
        with self._lock:
            if not self._is_closed:
                self._idle.append(process)
            return not self._is_closed


def _started() -> subprocess.Popen[bytes]:
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    program = Path(__file__).with_name("grammar_check.py")
    return subprocess.Popen(
        [sys.executable, "-P", str(program)],
        env={"PYTHONPATH": os.pathsep.join(sys.path), **inherited},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and release what it holds here."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # a question that it did not read
                pipe.close()
