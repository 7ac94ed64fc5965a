"""Names of what lies in a model's folder."""

from __future__ import annotations

ARTIFACT = "artifact"  # takes this name when the export is complete
RECORD = "model.json"
USED, LOCK = "used", "lock"
