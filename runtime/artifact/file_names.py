"""Names of an artifact's files beside its weights and its manifest."""

from __future__ import annotations

GRAPH_FILE = "decoder.onnx"

# Copied from the checkpoint as they are: what the runtime reads beside graphs and weights.
TOKENIZER_FILE = "tokenizer.json"
OPTIONAL_FILES = ("chat_template.jinja", "generation_config.json")
