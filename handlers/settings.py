"""Settings of the endpoints: one frozen value, from code or from QWONNX_* environment variables.

qwonnx.runtime.settings has the settings of the model and the machine; the rules for variables are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from qwonnx.handlers.effort import THINKING_EFFORTS, Effort
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.settings import read_environment

DEFAULT_RECENT_ITEMS_BYTES = 8 << 20
DEFAULT_MAX_BODIES_BYTES = 64 << 20
DEFAULT_MAX_BODY_BYTES = 10 << 20  # the limit of API gateways; about 3 million tokens of English
_MAX_HELD = 1024  # their bodies and connections wait too
_MIN_SECRET = 16  # characters
_MOST = 10**12
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:_-]{1,255}")  # without a path: browsers send none
_BASE_PATH = re.compile(r"(/[A-Za-z0-9._~-]+){1,8}")


class CapsuleCompression(StrEnum):
    """How capsules that are written are compressed."""

    NONE = "none"
    ZSTD = "zstd"


class MetricsNames(StrEnum):
    """Under which names GET /metrics tells its numbers."""

    QWONNX = "qwonnx"
    VLLM = "vllm"


class LogFormat(StrEnum):
    """The form of a line of the access log."""

    TEXT = "text"
    JSON = "json"


class PlatformName(StrEnum):
    """Where `qwonnx serve` runs: handlers/functions/platform.py has what each name means."""

    NONE = "none"
    AUTO = "auto"
    AZURE = "azure"
    CLOUD_RUN = "cloud-run"
    CLOUDEVENTS = "cloudevents"
    KSERVE = "kserve"
    SAGEMAKER = "sagemaker"
    VERTEX = "vertex"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of one application.

    model_name: the name that requests must give, or several with commas between them, of which the first one is shown;
        None is the name of the artifact's checkpoint.
    any_model_name: requests may give any name, and answers name it too: coding tools ask for a second, smaller model.
    reasoning_budget: tokens of reasoning at most, in all requests; then the model has to answer. None is no limit.
    effort_budgets: the same for each effort that a request may ask for, such as low=1024,medium=4096. None is no limit.
    api_key: the key that all requests but health checks must send, as `Authorization: Bearer` or `x-api-key`; None
        needs none.
    api_keys: a file of several keys with names, beside api_key: see docs/configuration.md. Each key has its own
        prefixes and capsules.
    share_prefixes: all keys use each other's prefixes and capsules. Times then tell one user what another one sent.
    base_path: in front of all routes, such as /prod, if a gateway or proxy does not remove it. Paths without it are
        served, too.
    max_body_bytes: limit for a request's body.
    shutdown_seconds: time for running requests after the server was told to stop.
    max_answer_seconds: time limit for an answer, which then ends with finish_reason "length"; for gateways that close
        connections (29 behind AWS API Gateway). None is no limit.
    capsules: folder or URL of fsspec in which states of conversations are kept for other instances; None keeps no
        states.
    capsule_compression: of capsules that are written, "none" or "zstd".
    max_bodies_bytes: limit for the bodies of all requests that are being read, beyond 64 KiB of each.
    header_seconds: time for a request's head, from the beginning of its connection.
    body_seconds: time for a request's body.
    send_seconds: time for a client to take what waits to be sent.
    max_connections: limit for open connections; None is what the process may open, up to 512.
    open_metrics: /metrics needs no key; without keys nothing does.
    hold_while_loading: requests that may wait while the model loads, instead of being refused with 503; further ones
        get a 429.
    platform: whose variables `qwonnx serve` reads for its address and its limits: "none", "auto" (found by the
        variables), "azure", "cloud-run", "cloudevents", "kserve", "sagemaker" or "vertex"; see docs/platforms.md.
    admin_key: opens the calls that load and unload adapters while the model answers; None: there are none.
    adapters_folder: where those calls may find adapters.
    no_key: serve without a key although a platform makes the server listen on all addresses: the platform itself lets
        only some callers through.
    microvm_hooks: answer the lifecycle hooks of AWS Lambda MicroVMs: see docs/aws-lambda.md.
    continuation_secret: signs the tokens with which a client continues an answer that its deadline cut off; at least 16
        characters, the same in all instances. None gives no such tokens. They need capsules.
    continuation_seconds: for which such a token is valid.
    strict_tools: requests with hosted tools, such as web_search, are refused; otherwise /v1/responses ignores these
        tools and names them in the header x-qwonnx-ignored-tools.
    recent_items_bytes: limit for the output items of /v1/responses that are kept in memory for clients that refer to
        them by id; 0 keeps none.
    key_max_requests: requests of one key that may be in flight at a time; a line of api_keys can give another number.
        None is no limit.
    key_tokens_per_minute: tokens of prompts and answers that one key may use; a line of api_keys can give another
        number. None is no limit.
    max_requests_in_flight: requests of all clients that may be in flight at a time; further ones get a 429. None is no
        limit.
    metrics_names: of /metrics: "qwonnx", or "vllm" for the same numbers under vLLM's names as well.
    open_openapi: /openapi.json needs no key; without keys nothing does.
    log_format: of the access log, "text" or "json".
    cors_origins: origins whose pages may use the server from a browser, such as https://example.com, or *; none by
        default.
    tls_certificate: file of the server's certificate chain, in PEM; needs tls_key. None is plain HTTP.
    tls_key: file of its private key, in PEM.
    telemetry: spans and metrics for OpenTelemetry, if its SDK is installed; OTEL_EXPORTER_OTLP_ENDPOINT turns it on,
        too.
    ui: a page for conversations at /, for browsers: see docs/page.md.
    """

    model_name: str | None = None
    any_model_name: bool = False
    reasoning_budget: int | None = None
    effort_budgets: str | None = None
    api_key: str | None = field(default=None, repr=False, metadata={"secret": True})  # logs must not contain it
    api_keys: str | None = None
    share_prefixes: bool = False
    base_path: str | None = None
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    shutdown_seconds: float = 20.0
    max_answer_seconds: float | None = None
    capsules: str | None = field(default=None, repr=False)  # a URL may hold credentials
    capsule_compression: str = "none"
    max_bodies_bytes: int = DEFAULT_MAX_BODIES_BYTES
    header_seconds: float = 30.0
    body_seconds: float = 30.0
    send_seconds: float = 30.0
    max_connections: int | None = None
    open_metrics: bool = False
    hold_while_loading: int = 8
    platform: str = "none"
    admin_key: str | None = field(default=None, repr=False, metadata={"secret": True})
    adapters_folder: str | None = None
    no_key: bool = False
    microvm_hooks: bool = False
    continuation_secret: str | None = field(default=None, repr=False, metadata={"secret": True})
    continuation_seconds: float = 900.0
    strict_tools: bool = False
    recent_items_bytes: int = DEFAULT_RECENT_ITEMS_BYTES
    key_max_requests: int | None = None
    key_tokens_per_minute: int | None = None
    max_requests_in_flight: int | None = None
    metrics_names: str = "qwonnx"
    open_openapi: bool = False
    log_format: str = "text"
    cors_origins: tuple[str, ...] = ()
    tls_certificate: str | None = None
    tls_key: str | None = None
    telemetry: bool = False
    ui: bool = False

    def __post_init__(self) -> None:
        if self.model_name is not None and not all(name.strip() for name in self.model_name.split(",")):
            raise SettingsError("model_name is empty: give a name, or names with commas, or leave it out")
        if self.reasoning_budget is not None and not 1 <= self.reasoning_budget < 1 << 31:
            raise SettingsError(f"reasoning_budget is {self.reasoning_budget}: give at least 1")
        _effort_budgets(self.effort_budgets)
        if self.api_key is not None and not is_token(self.api_key):
            raise SettingsError("api_key is empty or has spaces or characters beyond ASCII: give another key")
        if self.base_path is not None and not _BASE_PATH.fullmatch(self.base_path):
            raise SettingsError(f"base_path is {self.base_path!r}: give a path such as /prod")
        if self.max_body_bytes < 1:
            raise SettingsError(f"max_body_bytes is {self.max_body_bytes}: give at least 1")
        if self.recent_items_bytes < 0:
            raise SettingsError(f"recent_items_bytes is {self.recent_items_bytes}: give at least 0")
        if self.max_bodies_bytes < 1:
            raise SettingsError(f"max_bodies_bytes is {self.max_bodies_bytes}: give at least 1")
        for name in ("header_seconds", "body_seconds", "send_seconds"):
            if not 0 < getattr(self, name) <= 3600:
                raise SettingsError(f"{name} is {getattr(self, name)}: give more than 0 and at most 3600")
        if self.max_connections is not None and not 1 <= self.max_connections <= 1 << 20:
            raise SettingsError(f"max_connections is {self.max_connections}: give 1 to {1 << 20}")
        if not 0 <= self.hold_while_loading <= _MAX_HELD:
            raise SettingsError(f"hold_while_loading is {self.hold_while_loading}: give 0 to {_MAX_HELD}")
        for name in ("key_max_requests", "key_tokens_per_minute", "max_requests_in_flight"):
            number = getattr(self, name)
            if number is not None and not 1 <= number < _MOST:
                raise SettingsError(f"{name} is {number}: give 1 to {_MOST - 1}")
        if self.metrics_names not in list(MetricsNames):
            raise SettingsError(f"metrics_names is {self.metrics_names!r}: give {' or '.join(MetricsNames)}")
        if self.log_format not in list(LogFormat):
            raise SettingsError(f"log_format is {self.log_format!r}: give {' or '.join(LogFormat)}")
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise SettingsError(f"cors_origins has {origin!r}: give an origin such as https://example.com, or *")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise SettingsError("tls_certificate and tls_key belong together: give both files, or none")
        if self.platform not in list(PlatformName):
            raise SettingsError(f"platform is {self.platform!r}: give {', '.join(PlatformName)}")
        if not 0 <= self.shutdown_seconds <= 3600:
            raise SettingsError(f"shutdown_seconds is {self.shutdown_seconds}: give 0 to 3600")
        if self.max_answer_seconds is not None and not 0 < self.max_answer_seconds <= 1e6:
            raise SettingsError(f"max_answer_seconds is {self.max_answer_seconds}: give a positive number")
        if self.admin_key is not None and not is_token(self.admin_key):
            raise SettingsError("admin_key is empty or has spaces or characters beyond ASCII: give another key")
        if self.admin_key is not None and self.admin_key == self.api_key:
            raise SettingsError("admin_key is the api_key, which every client has: give another one")
        if self.continuation_secret is not None and len(self.continuation_secret) < _MIN_SECRET:
            raise SettingsError(f"continuation_secret is too short: give at least {_MIN_SECRET} characters")
        if not 1 <= self.continuation_seconds <= 7 * 86_400:
            raise SettingsError(f"continuation_seconds is {self.continuation_seconds}: give 1 to {7 * 86_400}")
        if self.capsule_compression not in list(CapsuleCompression):
            choices = " or ".join(CapsuleCompression)
            raise SettingsError(f"capsule_compression is {self.capsule_compression!r}: give {choices}")

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that requests may give; empty leaves it to the artifact."""
        return tuple(name.strip() for name in (self.model_name or "").split(",") if name.strip())

    def thinking_budget(self, effort: Effort | None, asked: int | None) -> int | None:
        """Tokens of reasoning at most; None is no limit. The smallest of all limits counts.

        Args:
            effort: of the request.
            asked: the request's own budget.
        """
        by_effort = None if effort is None else _effort_budgets(self.effort_budgets).get(effort)
        limits = (asked, self.reasoning_budget, by_effort)
        return min((limit for limit in limits if limit is not None), default=None)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ServerSettings:
        """Settings from QWONNX_<NAME> variables (QWONNX_MODEL_NAME, ...): see runtime.settings.read_environment.

        Raises:
            SettingsError: a value is malformed or out of range; the message names the variable.
        """
        return read_environment(cls, environment)


def _effort_budgets(text: str | None) -> dict[str, int]:
    """
    Raises:
        SettingsError: the text is malformed.
    """
    found: dict[str, int] = {}
    for pair in (text or "").split(",") if text else ():
        name, _, number = pair.partition("=")
        if name.strip() not in THINKING_EFFORTS or not number.strip().isdecimal() or not 1 <= int(number) < 1 << 31:
            names = ", ".join(THINKING_EFFORTS)
            message = f"effort_budgets has {pair!r}: give {names} with tokens, such as low=1024,high=8192"
            raise SettingsError(message)
        found[name.strip()] = int(number)
    return found


def is_token(text: str) -> bool:
    """Whether an HTTP header can contain the text as one word."""
    return bool(text) and all("!" <= character <= "~" for character in text)
