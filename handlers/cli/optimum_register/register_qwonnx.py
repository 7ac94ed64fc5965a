"""What `optimum-cli` finds: installed as `optimum.commands.register.register_qwonnx`, the folder that it searches.

That folder belongs to every package that brings optimum a command, so nothing else, and no `__init__.py`, is in ours.
"""

from __future__ import annotations

from optimum.commands.export.base import ExportCommand

from qwonnx.handlers.cli.optimum_export import QwonnxExportCommand

REGISTER_COMMANDS = [(QwonnxExportCommand, ExportCommand)]
