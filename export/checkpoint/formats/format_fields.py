"""Checks of quantization_config that all quantisers' rules share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwonnx.export.checkpoint.config_fields import Fields
from qwonnx.export.errors import ConfigError
from qwonnx.runtime.artifact.object_fields import CORRECT, is_off

UNQUANTIZED = "export the checkpoint that is not quantised"

# -1: a group is a whole row. Any power of two from 16 can be split into the kernels' blocks.
GROUP_SIZES = (-1, 16, 32, 64, 128, 256, 512, 1024)


def check_fields(fields: Fields, method: str, fixed: Mapping[str, tuple[Any, ...]], known: frozenset[str]) -> None:
    """Refuse fields that could change what the stored numbers mean.

    Args:
        fields: of quantization_config, or of a part of it.
        method: the quantiser's name, for errors.
        fixed: fields that must have one of these values if they are present.
        known: fields that are read elsewhere, or that cannot change a weight.

    Raises:
        ConfigError: a fixed field has another value, or an unknown field is not off.
    """
    for name, value in fields.values.items():
        if name in fixed:
            # `==` alone would let 1 stand for true and 0 for false.
            if not any(value == choice and type(value) is type(choice) for choice in fixed[name]):
                raise ConfigError(
                    f"{fields.where}: {name} {str(value)[:60]!r} of {method} is not supported: {UNQUANTIZED}"
                )
        elif name not in known and name != "quant_method" and not is_off(value):
            raise ConfigError(
                f"{fields.where} has the field {name[:60]!r} of {method}, which is unknown here and may change the"
                " weights: upgrade qwonnx, or remove it if it does not matter"
            )


def choice(fields: Fields, method: str, name: str, allowed: tuple[int, ...]) -> int:
    """An integer field that must have one of these values.

    Raises:
        ConfigError: it is absent, or has another value.
    """
    value = fields.values.get(name)
    if value is None:
        raise ConfigError(f"{fields.where} has no {name}: {CORRECT}")
    if type(value) is not int or value not in allowed:
        raise ConfigError(
            f"{fields.where}: {name} {str(value)[:60]} of {method} is not supported, only"
            f" {', '.join(map(str, allowed))}: {UNQUANTIZED}"
        )
    return value


def names(fields: Fields, name: str) -> tuple[str, ...]:
    """A list of names; absent is empty.

    Raises:
        ConfigError: it is not a list of texts.
    """
    value = fields.values.get(name)
    if is_off(value):
        return ()
    if not isinstance(value, list) or any(not isinstance(one, str) for one in value):
        raise fields.error(name, "a list of names")
    return tuple(value)
