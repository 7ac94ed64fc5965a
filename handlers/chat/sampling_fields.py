"""The sampling parameters of an API's requests, made from their declarations in runtime/sampling/params.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from qwonnx.handlers.chat.validation import Strict
from qwonnx.runtime.sampling.parameter import Api, Parameter
from qwonnx.runtime.sampling.params import PARAMETERS


def sampling_struct(api: Api | None, base: type[msgspec.Struct] = Strict) -> type[msgspec.Struct]:
    """A struct with the fields of an API's sampling parameters, for its requests to inherit.

    Args:
        api: that the requests are of; None: all parameters, by the names that SamplingParams has for them.
        base: of the struct.
    """
    if api is None:
        made = [(name, parameter.type_in(None) | None, None) for name, parameter in PARAMETERS.items()]
    else:
        made = [(parameter.names[api], parameter.type_in(api) | None, None) for parameter in _of(api).values()]
    return msgspec.defstruct(f"{base.__name__}Sampling", made, bases=(base,), kw_only=True)


def sampling_of(request: msgspec.Struct, api: Api) -> dict[str, Any]:
    """Fields of SamplingParams that a request sets.

    Args:
        request: whose type inherits from sampling_struct().
        api: that it is of.
    """
    given = {name: getattr(request, parameter.names[api]) for name, parameter in _of(api).items()}
    return sampling_fields({name: value for name, value in given.items() if value is not None})


def sampling_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of SamplingParams, from the values of requests or options by the fields' names."""
    return {name: PARAMETERS[name].taken(value) for name, value in given.items()}


def _of(api: Api) -> dict[str, Parameter]:
    return {name: each for name, each in PARAMETERS.items() if api in each.names and not each.by_hand}
