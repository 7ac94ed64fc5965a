"""Settings of the runtime: one frozen value, from code or from QWONNX_* environment variables.

Settings do not depend on a model. The engine replaces None when it knows the artifact.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.quantities import parse_bytes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Settings = TypeVar("_Settings", bound="DataclassInstance")

# Longer sequences need max_model_len: buffers are reserved for max_num_seqs sequences of this length.
DEFAULT_MAX_MODEL_LEN = 32_768

AUTO = "auto"  # the device that the artifact was exported or compiled for

_LOWEST = {
    "num_threads": 1,
    "max_num_seqs": 1,
    "max_num_batched_tokens": 1,
    "max_model_len": 2,  # one token of prompt and one of answer
    "max_queued_requests": 1,
    "cache_bytes": 1,
    "memory_bytes": 0,
    "prefix_cache_bytes": 0,
    "max_adapters": 1,
    "max_adapter_rank": 1,
    "adapter_bytes": 1,
    "log_severity": 0,
}
_HIGHEST = {"max_adapters": 1024, "max_adapter_rank": 256, "num_threads": 1024, "max_num_seqs": 1024, "log_severity": 4}


class Residency(StrEnum):
    """How mapped weights come into memory."""

    MAP = "map"  # each page when it is first read
    WILLNEED = "willneed"  # read ahead, by a thread
    LOCK = "lock"  # all at once, and the system may not drop them
    POPULATE = "populate"  # all at once


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """Settings of one engine.

    device: where the model runs: "cpu", "cuda", "cuda:1", "tensorrt", "rtx", or "auto", which is what the artifact was
        exported or compiled for.
    num_threads: threads inside an operator, the engine's own thread included; None is every physical core.
    providers: ONNX Runtime's execution providers on the CPU; the first one that supports a node runs it.
    session_options: entries of ONNX Runtime's session configuration, each as name=value.
    max_num_seqs: sequences that run at once, each owning one row of every state buffer.
    max_num_batched_tokens: tokens of a prompt's chunk, the largest step.
    max_model_len: tokens of prompt and answer together. None is the model's limit, at most 32,768, and at most what
        fits cache_bytes if that is set.
    max_queued_requests: requests that may wait for a row; further ones are refused.
    cache_bytes: memory for the states of running requests. Other requests wait; the newest running one gives its row
        back if the others need the memory. None is half of the memory that is free after the model is loaded.
    memory_bytes: memory for the whole process. If the weights do not fit, experts are read when they are needed, and
        the least used ones go. None is the container's or machine's memory if the weights do not fit it; 0 is no limit.
    prefix_cache_bytes: memory for snapshots of prompts, so that shared beginnings are not read again; 0 turns it off.
    spin: threads busy-wait between operators, at most 1 ms: faster, but cores are at 100 % during a step.
    log_severity: ONNX Runtime's, from 0 (verbose) to 4 (fatal only); errors that it logs are also raised.
    allow_special_tokens: special tokens count in a chat whoever wrote them, so a message can end its turn and begin
        another. By default only the chat template's own do.
    kernels: "native" runs the graph's own operators on qwonnx's kernels, which read weights where their file is mapped;
        "onnxruntime" runs them on ONNX Runtime's, which copy weights; "auto" is native if the library can be loaded.
    weights_residency: how weights come from their mapped files into memory: "map" reads a page when it is needed,
        "willneed" also reads ahead, "populate" reads all before the first answer, "lock" does and keeps them there.
    adapters: LoRA adapters that requests can name as their model, each as NAME=FOLDER. The artifact must have been
        exported with --runtime-adapters. In the place of a folder, a URL with #sha256=: docs/adapters.md.
    max_adapters: adapters in memory at once; of others, the least recently used one makes room.
    max_adapter_rank: the largest rank of an adapter; None is that of the given ones. Set it to load others while
        serving.
    adapter_bytes: memory for the slots of adapters; it decides how many there are, up to max_adapters.
    stages: where stages 2, 3, ... of a model in stages listen, in their order: HOST:PORT or unix:PATH.
    stage_key: secret of all stages of a model; needed if a stage listens beyond this machine.
    """

    device: str = AUTO
    num_threads: int | None = None
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    session_options: tuple[str, ...] = ()
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 512
    max_model_len: int | None = None
    max_queued_requests: int = 256
    cache_bytes: int | None = None
    memory_bytes: int | None = None
    prefix_cache_bytes: int = 1 << 30
    spin: bool = True
    log_severity: int = 4
    allow_special_tokens: bool = False
    kernels: str = "auto"
    weights_residency: str = "willneed"
    adapters: tuple[str, ...] = ()
    max_adapters: int = 8
    max_adapter_rank: int | None = None
    adapter_bytes: int = 1 << 30
    stages: tuple[str, ...] = ()
    stage_key: str | None = field(default=None, repr=False, metadata={"secret": True})

    def __post_init__(self) -> None:
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise SettingsError(f"{name} is {value}: give at least {lowest}")
            if value is not None and value > _HIGHEST.get(name, value):
                raise SettingsError(f"{name} is {value}: give at most {_HIGHEST[name]}")
        if not re.fullmatch(r"auto|cpu|(cuda|tensorrt|rtx)(:[0-9]{1,3})?", self.device):
            raise SettingsError(f"device is {self.device!r}: give {AUTO}, cpu, cuda, cuda:1, ..., tensorrt, or rtx")
        if not self.providers:
            raise SettingsError("providers is empty: name at least CPUExecutionProvider")
        for entry in self.session_options:
            if not re.fullmatch(r"[A-Za-z0-9_.]{1,256}=[^\s,]{0,1024}", entry):
                raise SettingsError(f"session_options has {entry[:80]!r}: give name=value, as in session.option=1")
        if self.kernels not in list(Kernels):
            raise SettingsError(f"kernels is {self.kernels!r}: give {', '.join(Kernels)}")
        if self.weights_residency not in list(Residency):
            raise SettingsError(f"weights_residency is {self.weights_residency!r}: give {', '.join(Residency)}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> RuntimeSettings:
        """Settings from QWONNX_<NAME> variables (QWONNX_NUM_THREADS, ...): see read_environment.

        Raises:
            SettingsError: a variable's value is malformed or out of range; the message names the variable.
        """
        return read_environment(cls, environment)


def read_environment(settings: type[_Settings], environment: Mapping[str, str] | None = None) -> _Settings:
    """Settings from variables: QWONNX_ and the field's name. An unset or empty variable keeps the default.

    Sizes (fields that end in _bytes) are written as in 512MB, lists are separated by commas, switches are 1/0,
    true/false, on/off or yes/no. A field with "secret" in its metadata keeps its text unchanged, even if it is empty: a
    missing secret must not open a server. Messages do not quote it.

    Args:
        settings: a dataclass whose fields all have defaults. It raises SettingsError for values out of range.
        environment: the variables; None is os.environ.

    Raises:
        SettingsError: a variable's value is malformed or out of range; the message names the variable.
    """
    source = os.environ if environment is None else environment
    types, given = get_type_hints(settings), {}
    for each in fields(settings):
        variable = f"QWONNX_{each.name.upper()}"
        text = source.get(variable)
        if text is None or not (text.strip() or each.metadata.get("secret")):
            continue
        value = text if each.metadata.get("secret") else _value(text.strip(), variable, types[each.name])
        try:
            settings(**{each.name: value})
        except SettingsError as error:
            raise SettingsError(f"{variable}: {error}") from error
        given[each.name] = value
    return settings(**given)


def _value(text: str, variable: str, kind: Any) -> Any:
    """The value of a variable's text, by the field's type."""
    import msgspec  # imported here, because settings from code do not need it

    if variable.endswith("_BYTES"):
        return parse_bytes(text, variable, at_least=0)
    (plain,) = (part for part in (get_args(kind) if get_origin(kind) is UnionType else (kind,)) if part is not NoneType)
    names = get_origin(plain) is tuple
    parts = [part.strip() for part in text.split(",")] if names else _SWITCHES.get(text.lower(), text)
    try:
        if names and not all(parts):
            raise msgspec.ValidationError("an empty name")
        return msgspec.convert(parts if names or plain is bool else text, plain, strict=False)
    except msgspec.ValidationError as error:
        expected = "names separated by commas" if names else _EXPECTED.get(plain, "a text")
        raise SettingsError(f"{variable} is {text!r}: give {expected}") from error


# In addition to 1, 0, true and false, which msgspec takes.
_SWITCHES = {"on": "true", "yes": "true", "off": "false", "no": "false"}
_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false"}
