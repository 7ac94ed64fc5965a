"""One dialect of units: messages print sizes in powers of 1000; powers of 1024 are only for who writes a size."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[3]
# These write a size as a setting has it, which is exact.
_EXACT = {"handlers/configuration/environment.py"}


@pytest.mark.parametrize("folder", ["runtime", "export", "handlers"])
def test_no_message_prints_a_size_in_powers_of_1024(folder: str) -> None:
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.JoinedStr) or name in _EXACT:
                continue
            texts = [part.value for part in node.values if isinstance(part, ast.Constant)]
            if any(f" {unit}" in str(text) for text in texts for unit in ("KiB", "MiB", "GiB", "TiB")):
                found.append(f"{name}:{node.lineno}")
    assert found == []
