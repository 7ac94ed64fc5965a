"""File names in an artifact: its graphs and weights, the files copied from the checkpoint, and what is made of them."""

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

# Made from tokenizer.json for a fast start (runtime/text/vocabulary_file.py). The runtime can do without it: its reader
# checks it, and a damaged one costs a warning.
VOCABULARY_FILE = "vocabulary.bin"

_WEIGHTS_SUFFIX = ".bin"


def is_weight_file(path: str) -> bool:
    """Whether a file of an artifact has weights."""
    return path.endswith(_WEIGHTS_SUFFIX) and path != VOCABULARY_FILE
