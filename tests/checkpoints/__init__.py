"""Checkpoints for tests, benchmarks and the demonstration: tiny, of a real geometry, or a real size without values."""

from tests.checkpoints.geometry import write_geometry
from tests.checkpoints.sparse import write_sparse
from tests.checkpoints.tiny import chat_template, write_tiny
from tests.checkpoints.tokenizer import SPECIAL_TOKENS, build_tokenizer

__all__ = ["SPECIAL_TOKENS", "build_tokenizer", "chat_template", "write_geometry", "write_sparse", "write_tiny"]
