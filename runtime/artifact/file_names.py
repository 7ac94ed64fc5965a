"""File names in an artifact: its graphs, and the files copied from the checkpoint."""

from __future__ import annotations

DECODER = "decoder"  # the graph that every artifact has: tokens and states to logits and states


def graph_file(graph: str) -> str:
    """The file of a graph: "decoder" -> "decoder.onnx"."""
    return f"{graph}.onnx"


# Copied from the checkpoint unchanged; the runtime reads them in addition to graphs and weights.
TOKENIZER_FILE = "tokenizer.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
GENERATION_CONFIG_FILE = "generation_config.json"
OPTIONAL_FILES = (CHAT_TEMPLATE_FILE, GENERATION_CONFIG_FILE)
