"""Pages of the reference that are made from the code: the command line, and Python."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from qwonnx.handlers.cli.command_line import spec_of
from qwonnx.handlers.cli.commands import names
from qwonnx.handlers.cli.help_text import help_text

# What a program may rely on: the module, and what of it is public.
_MODULES = {
    "qwonnx": "A model as an object: [python.md](../python.md) explains it.",
    "qwonnx.runtime": "The engine, without HTTP.",
    "qwonnx.export": "Exports, as `qwonnx export` makes them.",
}


def command_line() -> str:
    """Every command's `--help`."""
    parts = ["# Command line", "", "What `qwonnx COMMAND --help` prints, of this version.", ""]
    for name in names():
        parts += [f"## qwonnx {name}", "", "```text", help_text(spec_of(name)).rstrip(), "```", ""]
    parts += ["**Next:** [configuration.md](../configuration.md) has the variables, and the file for all of them.", ""]
    return "\n".join(parts)


def python() -> str:
    """Signatures and docstrings of the public names."""
    parts = ["# Python", "", "The public names of this version. Others may change with any version.", ""]
    for module_name, purpose in _MODULES.items():
        module = import_module(module_name)
        parts += [f"## {module_name}", "", purpose, ""]
        for name in sorted(set(module.__all__) - {"__version__"}):
            parts += _described(name, getattr(module, name))
    parts += ["**Next:** [engine.md](../engine.md) says how requests share a model.", ""]
    return "\n".join(parts)


def _described(name: str, value: Any) -> list[str]:
    signature = _signature(value)
    parts = [f"### {name}", "", "```python", f"{name}{signature}", "```", ""]
    parts += ["```text", inspect.getdoc(value) or "", "```", ""]
    if inspect.isclass(value):
        for method, function in sorted(vars(value).items()):
            if not method.startswith("_") and inspect.isfunction(function) and function.__doc__:
                parts += [f"**{name}.{method}**", "", "```python", f"{method}{_signature(function)}", "```", ""]
                parts += ["```text", inspect.getdoc(function) or "", "```", ""]
    return parts


def _signature(value: Any) -> str:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    return str(signature).replace("'", "")
