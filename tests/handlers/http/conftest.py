"""A browser, and servers with the page for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.handlers.http.chromium import CHROMIUM, HOSTILE, RUNTIME, SETTINGS, THOUGHTS
from tests.handlers.serving import Served, serving
from tests.runtime import counting_model


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def saying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model that always thinks and then says the hostile text."""
    folder = tmp_path_factory.mktemp("saying") / "artifact"
    counting_model.make(folder, script=f"<think>\n{THOUGHTS}\n</think>\n\n{HOSTILE}")
    with serving(folder, runtime=RUNTIME, settings=SETTINGS) as served:
        yield served


@pytest.fixture(scope="module")
def counting(counting_folder: Path) -> Iterator[Served]:
    """A model that counts until there is no more room, and says something else to each prompt."""
    with serving(counting_folder, runtime=RUNTIME, settings=SETTINGS) as served:
        yield served
