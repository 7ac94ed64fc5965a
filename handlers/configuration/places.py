"""Where configuration files are. Every command looks there at its start, so this imports next to nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping

VARIABLE = "QWONNX_CONFIG"
NAME = "qwonnx.toml"


def configuration_files(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The files that exist, the most important one first; $QWONNX_CONFIG stands for all others, and may name none.

    Args:
        environment: the variables; None is os.environ.
    """
    source = os.environ if environment is None else environment
    named = source.get(VARIABLE)
    if named is not None:
        return (named.strip(),) if named.strip() else ()
    base = source.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):
        home = source.get("HOME", "")
        base = os.path.join(home, ".config") if home else ""
    places = (NAME, os.path.join(base, "qwonnx", NAME) if base else "")
    return tuple(place for place in places if place and os.path.isfile(place))
