"""The names of all commands, and where their functions are. Importing it imports none of them."""

from __future__ import annotations

from importlib.util import find_spec

# By name: the module in this folder, and the function in it.
COMMANDS = {
    "check": ("check", "check"),
    "plan": ("plan", "plan"),
    "export": ("export", "export"),
    "pull": ("pull", "pull"),
    "list": ("list_models", "list_models"),
    "show": ("show_model", "show"),
    "rm": ("remove_model", "remove"),
    "bake": ("bake", "bake"),
    "compile": ("compile", "compile_model"),
    "inspect": ("inspect", "inspect"),
    "verify": ("verify", "verify"),
    "eval": ("eval", "evaluate"),
    "generate": ("generate", "generate"),
    "chat": ("chat", "chat"),
    "batch": ("batch", "batch"),
    "bench": ("bench", "bench"),
    "config": ("config", "config"),
    "completion": ("completion", "completion"),
}
# Servers read their own options: the module, which has a function of the same name, and `parser`.
SERVERS = {"serve": "serve", "route": "route", "stage": "stage"}
# What a shell's completion calls; for no user.
COMPLETE = "__complete"
EXPORTERS = ("check", "plan", "export", "pull", "verify", "eval")


def names() -> tuple[str, ...]:
    """All commands of this installation: one that only serves may lack qwonnx.export."""
    only_serves = find_spec("qwonnx.export") is None
    return (*(name for name in COMMANDS if not (only_serves and name in EXPORTERS)), *SERVERS)
