"""The text files of a checkpoint that an export reads, by name: what is fetched of a checkpoint that lies elsewhere."""

from __future__ import annotations

from qwonnx.export.checkpoint.chosen_files import INDEX_NAME, PYTORCH_INDEX_NAME
from qwonnx.runtime.adapters.adapter_config import ADAPTER_CONFIG

CONFIG_FILES = ("config.json", ADAPTER_CONFIG)  # what decides first whether a checkpoint is exported
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"),
    *("vocab.json", "merges.txt"),
)
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "processor_config.json")
TEMPLATE_FOLDER = "additional_chat_templates/"
# Files in which quantisers describe weights, see refuse_side_file.
SIDE_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json")

# An evaluation with pictures reads these; they have a few hundred bytes.
_PICTURE_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")

TEXT_FILES = (
    *CONFIG_FILES,
    "generation_config.json",
    *(INDEX_NAME, PYTORCH_INDEX_NAME),
    *TOKENIZER_FILES,
    *TEMPLATE_FILES,
    *SIDE_FILES,
    *_PICTURE_FILES,
)


def is_text_file(name: str) -> bool:
    """Whether an export may read this file, by its name relative to the folder, and it has no tensors."""
    if name.startswith(TEMPLATE_FOLDER):
        return name.endswith(".jinja") and name.count("/") == 1
    return name in TEXT_FILES or ("/" not in name and name.endswith((".safetensors.index.json", ".bin.index.json")))
