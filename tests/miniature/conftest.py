"""Fixtures that the miniature's own tests share with those of its training."""

from tests.infra.miniature.conftest import one_thread, probe_config, rough_model, tokenizer

__all__ = ["one_thread", "probe_config", "rough_model", "tokenizer"]
