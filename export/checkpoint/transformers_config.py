"""A checkpoint's config.json as transformers' own object, for the modules that run transformers' model.

transformers chooses the class by model_type. A flat file that has the type of the whole model, or none, would become a
whole model of default sizes, so its type is set to that of the text model first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwonnx.export.checkpoint.config import CONFIG_NAME, ModelConfig, gguf_document
from qwonnx.export.checkpoint.gguf.files import is_gguf
from qwonnx.runtime.artifact.strict_json import read_object

_MAX_BYTES = 4 << 20


def transformers_config(folder: Path, config: ModelConfig) -> Any:
    """transformers' configuration of the whole model, or of the text model if config.json is flat.

    Args:
        folder: of the checkpoint (or the first file of a model in GGUF), whose config.json was read before.
        config: what was read.

    Raises:
        StrictJsonError: the file was changed since.
        Exception: whatever transformers raises about a value.
    """
    from transformers import AutoConfig

    document = gguf_document(folder) if is_gguf(folder) else read_object(folder / CONFIG_NAME, _MAX_BYTES)
    whole = "qwen3_5_moe" if config.num_experts else "qwen3_5"
    is_flat = document.get("text_config") is None
    model_type = f"{whole}_text" if is_flat else whole
    if document.get("model_type") == model_type and not is_gguf(folder):
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    return AutoConfig.for_model(model_type, **{name: value for name, value in document.items() if name != "model_type"})
