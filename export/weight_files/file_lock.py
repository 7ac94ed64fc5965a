"""A lock on an open file, which ends with it: one process at a time works in a folder."""

from __future__ import annotations

import errno

from qwonnx.export.errors import OutputError

# Lustre without -o flock, some network file systems: work goes on there if only one process at a time is started.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


def lock_file(file: int, held: str) -> None:
    """Lock an open file for this process alone.

    Args:
        file: its descriptor.
        held: the message if another process holds the lock.

    Raises:
        OutputError: another process holds it.
        OSError: it cannot be locked.
    """
    import fcntl  # only POSIX has it; exports and verifications check that first

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(held) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
