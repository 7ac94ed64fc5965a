"""The memory that serves a stored model: of a process, or of a device."""

from __future__ import annotations

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.planning.device_memory import DeviceUse, device_use
from qwonnx.export.planning.resident_memory import MemoryUse, Serving, memory_use, tokenizer_memory
from qwonnx.export.planning.states import StateSizes
from qwonnx.export.planning.stored_model import StoredModel

Use = MemoryUse | DeviceUse


def memory_of(config: ModelConfig, model: StoredModel, states: StateSizes, serving: Serving) -> Use:
    """Memory once sequences are as long as `serving.context`, where the model's target has it."""
    if model.choice.target.on_device:
        return device_use(config, model, states, serving)
    return memory_use(config, model.loaded, states, tokenizer_memory(model.artifact), serving)
