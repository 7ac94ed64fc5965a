"""The phases of a start: for a log line, and for `qwonnx bench cold-start`, which sees them from another process."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

# The variable that names a file for the phases, as JSON, once the model answers.
FILE_VARIABLE = "QWONNX_STARTUP_FILE"


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase. began, ended: seconds of time.monotonic(). cpu_s: processor time of its thread.

    Without a begin it is all that the process did before: only whoever started it knows when that was.
    """

    name: str
    began: float | None
    ended: float
    cpu_s: float


class StartUp:
    """Phases in the order in which they ended. Some run side by side, in threads."""

    def __init__(self) -> None:
        self.phases = [Phase("process", None, time.monotonic(), time.thread_time())]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        began, cpu = time.monotonic(), time.thread_time()
        try:
            yield
        finally:
            self.phases.append(Phase(name, began, time.monotonic(), time.thread_time() - cpu))

    def report(self) -> None:
        """Write the file that the environment asks for."""
        if path := os.environ.get(FILE_VARIABLE):
            beside = f"{path}.{threading.get_ident()}"
            with open(beside, "w", encoding="utf-8") as file:
                json.dump({"ready": time.monotonic(), "phases": [asdict(each) for each in self.phases]}, file)
            os.replace(beside, path)

    def __str__(self) -> str:
        timed = ((each.name, each.ended - each.began) for each in self.phases if each.began is not None)
        return ", ".join(f"{name} {seconds:.3f}" for name, seconds in timed)
