"""The tables of docs/machines.md are those of the plan."""

from __future__ import annotations

import pytest

from infra.machines_table import MACHINES, PAGE, RECIPES, with_tables
from tests.checkpoints.published import PUBLISHED

pytestmark = pytest.mark.fast


def test_the_page_has_the_tables_of_the_plan() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page), "python -m infra.machines_table writes it anew"
    rows = [line for line in page.splitlines() if line.startswith(tuple(f"| {name} |" for name in PUBLISHED))]
    assert len(rows) == len(PUBLISHED) * (len(RECIPES) + 1)
    assert {len(row.split("|")) for row in rows} == {8, len(MACHINES) + 4}
