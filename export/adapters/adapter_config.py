"""adapter_config.json as an export reads it: the runtime's reader, with the errors of exports."""

from __future__ import annotations

from pathlib import Path

from qwonnx.export.errors import AdapterError
from qwonnx.runtime.adapters import adapter_config
from qwonnx.runtime.adapters.adapter_config import AdapterConfig
from qwonnx.runtime.errors import AdapterError as RuntimeAdapterError


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read and check an adapter's configuration.

    Raises:
        AdapterError: it is missing or malformed, not of a LoRA or DoRA adapter, or has a field that is not supported.
    """
    try:
        return adapter_config.read_adapter_config(folder)
    except RuntimeAdapterError as error:
        raise AdapterError(str(error)) from error
