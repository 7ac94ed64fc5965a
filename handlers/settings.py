"""How the endpoints behave: one frozen value, from code or from QWONNX_* environment variables.

What concerns the model and the machine is in qwonnx.runtime.settings; the two share their environment's rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.settings import read_environment

DEFAULT_MAX_BODY_BYTES = 10 << 20  # what API gateways let through; some 3 million tokens of English

CAPSULE_COMPRESSIONS = ("none", "zstd")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of one application.

    model_name: the name that requests must ask for; None is the name of the checkpoint the artifact was made from.
    api_key: what `Authorization: Bearer` must say under /v1; None lets everybody in. Only ever compared.
    max_body_bytes: a request's body, at most.
    shutdown_seconds: how long running requests may go on once the server was told to stop.
    max_answer_seconds: how long an answer may take before it ends as it is, with finish_reason "length", for gateways
        that hang up (29 behind AWS API Gateway); None is as long as it takes.
    capsules: where states of conversations are kept for other instances, a folder or a URL of fsspec; None: nowhere.
    capsule_compression: of those that are written, "none" or "zstd".
    """

    model_name: str | None = None
    api_key: str | None = field(default=None, repr=False, metadata={"secret": True})  # no log must hold it
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    shutdown_seconds: float = 20.0
    max_answer_seconds: float | None = None
    capsules: str | None = field(default=None, repr=False)  # a URL may hold credentials
    capsule_compression: str = "none"

    def __post_init__(self) -> None:
        if self.model_name is not None and not self.model_name.strip():
            raise SettingsError("model_name is empty: give a name, or leave it out")
        if self.api_key is not None and not _is_token(self.api_key):
            raise SettingsError("api_key is empty or has spaces or characters beyond ASCII: give another key")
        if self.max_body_bytes < 1:
            raise SettingsError(f"max_body_bytes is {self.max_body_bytes}: give at least 1")
        if not 0 <= self.shutdown_seconds <= 3600:
            raise SettingsError(f"shutdown_seconds is {self.shutdown_seconds}: give 0 to 3600")
        if self.max_answer_seconds is not None and not 0 < self.max_answer_seconds <= 1e6:
            raise SettingsError(f"max_answer_seconds is {self.max_answer_seconds}: give a positive number")
        if self.capsule_compression not in CAPSULE_COMPRESSIONS:
            choices = " or ".join(CAPSULE_COMPRESSIONS)
            raise SettingsError(f"capsule_compression is {self.capsule_compression!r}: give {choices}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ServerSettings:
        """Settings from QWONNX_<NAME> variables (QWONNX_MODEL_NAME, ...): see runtime.settings.read_environment.

        Raises:
            SettingsError: a value is malformed or out of range; the message names the variable.
        """
        return read_environment(cls, environment)


def _is_token(text: str) -> bool:
    """Whether an HTTP header can carry the text as one word."""
    return bool(text) and all("!" <= character <= "~" for character in text)
