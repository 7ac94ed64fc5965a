"""Names of an artifact's graphs, and of its files beside its weights and its manifest."""

from __future__ import annotations

DECODER = "decoder"  # the graph that every artifact has: tokens and states to logits and states


def graph_file(graph: str) -> str:
    """The file of a graph: "decoder" -> "decoder.onnx"."""
    return f"{graph}.onnx"


# Copied from the checkpoint as they are: what the runtime reads beside graphs and weights.
TOKENIZER_FILE = "tokenizer.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
GENERATION_CONFIG_FILE = "generation_config.json"
OPTIONAL_FILES = (CHAT_TEMPLATE_FILE, GENERATION_CONFIG_FILE)
