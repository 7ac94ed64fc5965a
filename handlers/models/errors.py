"""What the store of models cannot do."""

from __future__ import annotations

from qwonnx.runtime.errors import SettingsError


class ModelStoreError(SettingsError):
    """A model's name is unknown or malformed, or the store cannot be used. The message is one line, with a remedy."""
