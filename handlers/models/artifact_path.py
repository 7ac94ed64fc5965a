"""An artifact's folder from what a user gives: a path, or the name of a model that was pulled.

Servers import this before they listen, so it imports the store only for a name.
"""

from __future__ import annotations

import os
from pathlib import Path


def artifact_path(text: str | os.PathLike[str]) -> Path:
    """The folder. A path stays as it is; what exists is a path, and so is what begins with ".", "/" or "~".

    Raises:
        ModelStoreError: it is a name, and there is no such model, or it is ambiguous.
    """
    given = os.fspath(text)
    if not isinstance(text, str) or is_path(given):
        return Path(given)
    from qwonnx.handlers.models.stored_models import StoredModels

    return StoredModels().resolve(given)


def is_path(text: str) -> bool:
    """Whether a text is the path of a folder, and not a model's name."""
    if not text or text[0] in "./~" or "\\" in text:
        return True
    try:
        return os.path.lexists(text)
    except (OSError, ValueError):
        return True  # whoever opens it says why it cannot be one
