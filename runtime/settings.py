"""How the runtime uses its machine: one frozen value, from code or from QWONNX_* environment variables.

It says nothing of a model; what it leaves open (None) the engine settles when it knows the artifact.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from qwonnx.runtime.errors import SettingsError

# Sequences longer than this are served on request only: the buffers are reserved for max_num_seqs of them.
DEFAULT_MAX_MODEL_LEN = 32_768

_LOWEST = {
    "num_threads": 1,
    "max_num_seqs": 1,
    "max_num_batched_tokens": 1,
    "max_model_len": 2,  # one token of prompt and one of answer
    "max_queued_requests": 1,
    "cache_bytes": 1,
    "prefix_cache_bytes": 0,
    "log_severity": 0,
}
_HIGHEST = {"num_threads": 1024, "max_num_seqs": 1024, "log_severity": 4}


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """Settings of one engine.

    num_threads: threads inside an operator, the engine's own thread included; None is every physical core.
    providers: ONNX Runtime's execution providers, the first that can run a node runs it.
    max_num_seqs: sequences that run at once, each owning one row of every state buffer.
    max_num_batched_tokens: tokens of a prompt's chunk, the largest step.
    max_model_len: tokens of prompt and answer together; None is the model's own limit, at most 32,768, and no more than
        fit into cache_bytes if that is given.
    max_queued_requests: requests that may wait for a row; one more is refused.
    cache_bytes: memory for the states of running requests; more of them wait, and the last to come gives its row back
        if the others' answers need it. None is half of what is free once the model is loaded.
    prefix_cache_bytes: memory for snapshots of prompts, so that one that begins alike is not read again; 0 for none.
    spin: threads wait busily between operators, which is faster and keeps the cores at 100 % during a step.
    log_severity: ONNX Runtime's, from 0 (verbose) to 4 (fatal only); what it logs as an error, it also raises.
    """

    num_threads: int | None = None
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 512
    max_model_len: int | None = None
    max_queued_requests: int = 256
    cache_bytes: int | None = None
    prefix_cache_bytes: int = 1 << 30
    spin: bool = True
    log_severity: int = 4

    def __post_init__(self) -> None:
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise SettingsError(f"{name} is {value}: give at least {lowest}")
            if value is not None and value > _HIGHEST.get(name, value):
                raise SettingsError(f"{name} is {value}: give at most {_HIGHEST[name]}")
        if not self.providers:
            raise SettingsError("providers is empty: name at least CPUExecutionProvider")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> RuntimeSettings:
        """Settings from QWONNX_<NAME> variables (QWONNX_NUM_THREADS, ...); those unset or empty keep the default.

        Lists are separated by commas, switches are 1/0, true/false, on/off or yes/no.

        Raises:
            SettingsError: a variable's value is malformed or out of range; the message names the variable.
        """
        source = os.environ if environment is None else environment
        given: dict[str, Any] = {}
        for field in fields(cls):
            variable = f"QWONNX_{field.name.upper()}"
            text = source.get(variable, "").strip()
            if not text:
                continue
            parse = _PARSERS.get(field.name, int)
            try:
                given[field.name] = parse(text)
                cls(**{field.name: given[field.name]})
            except ValueError as error:
                raise SettingsError(f"{variable} is {text!r}: give {_EXPECTED.get(parse, 'a whole number')}") from error
            except SettingsError as error:
                raise SettingsError(f"{variable}: {error}") from error
        return cls(**given)


def _switch(text: str) -> bool:
    lowered = text.lower()
    if lowered in ("1", "true", "on", "yes"):
        return True
    if lowered in ("0", "false", "off", "no"):
        return False
    raise ValueError(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise ValueError(text)
    return names


_PARSERS: dict[str, Callable[[str], Any]] = {"providers": _names, "spin": _switch}
_EXPECTED: dict[Callable[[str], Any], str] = {_names: "names separated by commas", _switch: "true or false"}
