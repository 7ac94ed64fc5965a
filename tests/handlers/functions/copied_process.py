"""A process whose kernel generates the same numbers as that of its copies: the worst that a snapshot can do.

`python -m tests.handlers.functions.copied_process MODULE ARGUMENT...`

A machine's snapshot is taken with all its memory; two copies then differ only in what reaches them later. A test cannot
take a snapshot of a machine, and a forked process loses ONNX Runtime's threads. So two processes run the same program,
and their source of randomness, os.urandom, gives both the same bytes, from before anything is imported. numpy's and the
standard library's generators take their seeds from it. The hash seed is equal, too.
"""

from __future__ import annotations

import hashlib
import os
import runpy
import secrets
import sys

_count = 0


def _same_bytes(size: int) -> bytes:
    global _count
    _count += 1
    return hashlib.shake_128(_count.to_bytes(8, "little")).digest(size)


if __name__ == "__main__":
    os.urandom = _same_bytes
    secrets.randbits = lambda k: int.from_bytes(_same_bytes((k + 7) // 8), "little") >> (-k % 8)
    if os.environ.get("QWONNX_TEST_WITHOUT_HOOKS"):
        from qwonnx.runtime.sampling import entropy

        entropy.stir = lambda material=b"": None
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
