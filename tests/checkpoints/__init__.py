"""Checkpoints made by a seed, for tests, benchmarks and the demonstration: `write_tiny` and `write_geometry`."""

from tests.checkpoints.geometry import write_geometry
from tests.checkpoints.tiny import chat_template, write_tiny
from tests.checkpoints.tokenizer import SPECIAL_TOKENS, build_tokenizer

__all__ = ["SPECIAL_TOKENS", "build_tokenizer", "chat_template", "write_geometry", "write_tiny"]
