"""Fixtures of the miniature's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tokenizers import Tokenizer

from infra.miniature import vocabulary
from infra.miniature.configuration import PROBE_TEXT, PROBE_VISION, configuration
from infra.miniature.mixture import Mixture, Proportions
from infra.miniature.model import Miniature
from tests.checkpoints.config_json import Json


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products of these sizes gain nothing from a second thread, and sums keep their order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return vocabulary.train_tokenizer()


@pytest.fixture(scope="session")
def probe_config(tokenizer: Tokenizer) -> Json:
    """config.json of the small model."""
    ids = vocabulary.token_ids(tokenizer)
    return configuration(ids, vocabulary.VOCAB_SIZE, text=PROBE_TEXT, vision=PROBE_VISION)


@pytest.fixture(scope="session")
def mixture(tokenizer: Tokenizer) -> Mixture:
    return Mixture(tokenizer, 0, Proportions(short_rows=4, long_tokens=1024))


@pytest.fixture
def rough_model(probe_config: Json) -> Miniature:
    """The small model; its norms, biases, gates and outputs of blocks differ from every initialisation."""
    torch.manual_seed(1)
    model = Miniature(probe_config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any() and parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            elif parameter.ndim > 1:
                parameter.mul_(2)
            elif not name.endswith(("A_log", "dt_bias")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model
