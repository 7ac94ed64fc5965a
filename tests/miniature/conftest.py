"""Fixtures that the miniature's own tests share with those of its training."""

from tests.infra.miniature.conftest import mixture, one_thread, probe_config, rough_model, tokenizer

__all__ = ["mixture", "one_thread", "probe_config", "rough_model", "tokenizer"]
