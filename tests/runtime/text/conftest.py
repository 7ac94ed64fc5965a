"""The published vocabulary, which takes seconds to make and to load, once for all modules."""

from __future__ import annotations

import pytest

from tests.checkpoints.published_tokenizer import published_tokenizer_json
from tests.runtime.text.mapped import BothForms, both_forms


@pytest.fixture(scope="session")
def published_source() -> str:
    return published_tokenizer_json()


@pytest.fixture(scope="session")
def published(published_source: str, tmp_path_factory: pytest.TempPathFactory) -> BothForms:
    return both_forms(published_source, tmp_path_factory.mktemp("published"))
