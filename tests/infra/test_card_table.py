"""The tables of models and cards are the plan's."""

from __future__ import annotations

import pytest

from infra.card_table import PAGE, with_tables

pytestmark = pytest.mark.fast


def test_the_page_has_what_plans_say() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page), "python -m infra.card_table writes it anew"
