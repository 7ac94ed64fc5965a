"""Registers the command: installed as `optimum.commands.register.register_qwonnx`, which `optimum-cli` searches.

All packages with commands share that folder, so ours has only this file, without an `__init__.py`.
"""

from __future__ import annotations

from optimum.commands.export.base import ExportCommand

from qwonnx.handlers.cli.optimum_export import QwonnxExportCommand

REGISTER_COMMANDS = [(QwonnxExportCommand, ExportCommand)]
