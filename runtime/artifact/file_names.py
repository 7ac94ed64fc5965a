"""Names of an artifact's files, and of inputs and outputs of its graphs that both sides know."""

from __future__ import annotations

DECODER = "decoder"  # the graph that every artifact has: tokens and states to logits and states
# float32 [batch, sequence, hidden_size]: the output of a stage, which is the input of the next.
NEXT_HIDDEN_STATES, HIDDEN_STATES = "next_hidden_states", "hidden_states"


# Inputs of a graph that takes adapters: int64 [batch], the slot of each row, 0 for none; and float32 [num_slots, width,
# rank], the numbers of every slot (AdapterTarget).
ADAPTER_SLOTS, ADAPTERS = "adapter_slots", "adapters"


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
