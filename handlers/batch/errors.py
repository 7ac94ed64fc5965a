"""What a batch cannot do."""

from __future__ import annotations


class BatchError(Exception):
    """A batch cannot begin or go on. The message names the cause and the remedy, in one line."""
