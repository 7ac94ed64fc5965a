"""What must be new after a snapshot of the process is restored, perhaps in several copies at once.

    randomness        request ids, ids of answers and calls, seeds of requests without one: runtime/sampling/entropy.py;
                      also `random` and OpenSSL, whose generators live in this process: packages use them
    grammar checks    the child processes end before the snapshot; a later guide starts one
    capsule stores    connections are closed before the snapshot, or dead after it: the store is opened again
    clocks            what was put off until a time is due now: a monotonic clock may stand still or jump
    threads           ONNX Runtime's threads stop to spin shortly after a step; before a snapshot no step runs

Deadlines are not in this list: they belong to requests, and a snapshot is taken while none runs. Weights, prefixes,
templates and compiled guides are kept: they are what a snapshot is for.
"""

from __future__ import annotations

import gc
import logging
import os
import random

from qwonnx.handlers.chat.capsule_store import CapsuleStore
from qwonnx.handlers.model_host import ModelHost
from qwonnx.runtime.machine import give_back_memory
from qwonnx.runtime.sampling import entropy

logger = logging.getLogger(__name__)

_SEED_BYTES = 64


class RestoreHooks:
    """The hooks of one application.

    Args:
        host: of the engine, which has loaded before a snapshot.
        capsules: of the application, or None.
    """

    def __init__(self, host: ModelHost, capsules: CapsuleStore | None) -> None:
        self._host = host
        self._capsules = capsules

    def before_snapshot(self) -> None:
        """Let go of what a snapshot should not contain. Call it while no request runs."""
        if (engine := self._host.loaded_engine) is not None:
            engine.before_snapshot()
        if self._capsules is not None:
            self._capsules.close()
        gc.collect()
        give_back_memory()

    def after_restore(self, material: bytes = b"") -> None:
        """Make new what must not be equal in two copies.

        Args:
            material: what only this copy was told, such as its id.
        """
        import ssl  # takes 5 ms, which a server without snapshots need not spend

        entropy.stir(material)
        random.seed(entropy.fresh_bytes(_SEED_BYTES))
        ssl.RAND_add(os.urandom(_SEED_BYTES) + entropy.fresh_bytes(_SEED_BYTES), _SEED_BYTES)
        if self._capsules is not None:
            self._capsules.open_again()
        if (engine := self._host.loaded_engine) is not None:
            engine.after_restore()
        logger.info("restored from a snapshot")

    def register(self) -> None:
        """Have Amazon's client for Python call the hooks, where it is installed and takes snapshots."""
        try:
            import snapshot_restore_py
        except ImportError:
            return
        snapshot_restore_py.register_before_snapshot(self.before_snapshot)
        snapshot_restore_py.register_after_restore(self.after_restore)
