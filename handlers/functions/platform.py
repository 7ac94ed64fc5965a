"""Platforms that run `qwonnx serve`: what their variables say, and what follows for the server.

A platform's own routes are in its file (sagemaker.py, vertex.py, ...), which is imported once the server is built. This
file imports little, because the server needs its port before anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from qwonnx.handlers.settings import PlatformName, ServerSettings
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.install import how_to_install

if TYPE_CHECKING:  # imported by the server, later
    from starlette.types import ASGIApp

    from qwonnx.handlers.model_host import ModelHost

ALL_ADDRESSES = "0.0.0.0"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_ONLY_THIS_MACHINE = "127.0.0.1"
_DEFAULT_PORT = 8080  # of every platform that names none

_Environment = Mapping[str, str]


class Keys(Enum):
    """Whether a server on a platform needs a key of its own."""

    NEEDED = "needed"  # unless the user says that the platform lets only some callers through
    OPTIONAL = "optional"  # the platform lets only some callers through
    USELESS = "useless"  # and keeps the Authorization header for itself


@dataclass(frozen=True, slots=True)
class Platform:
    """One platform.

    name: never AUTO or NONE.
    port: to listen on.
    address: to listen on.
    found: variables and folders that say so, for people: "PORT=9000".
    artifact: the folder in which the platform puts an artifact, or None.
    defaults: QWONNX_* variables with the platform's limits, for those that are not set.
    keys: whether the server needs a key of its own there.
    health_route, predict_route: paths that the platform asks for, of those whose variables name them.
    """

    name: PlatformName
    port: int
    address: str = ALL_ADDRESSES
    found: tuple[str, ...] = ()
    artifact: Path | None = None
    defaults: Mapping[str, str] = field(default_factory=dict)
    keys: Keys = Keys.NEEDED
    health_route: str = ""
    predict_route: str = ""

    def settings(self, environment: _Environment) -> ServerSettings:
        """The server's settings: variables, over the platform's limits.

        Raises:
            SettingsError: a variable is malformed.
        """
        missing = {name: text for name, text in self.defaults.items() if not environment.get(name, "").strip()}
        return ServerSettings.from_environment({**environment, **missing})

    def application(self, host: ModelHost, settings: ServerSettings) -> ASGIApp:
        """The application with the platform's own routes, from its file in this folder.

        Raises:
            SettingsError: the settings cannot be used.
        """
        made: ASGIApp = import_module(_FILES[self.name]).application(host, settings, self)
        return made

    def described(self, address: str, port: int) -> str:
        """One line for the start: what was found, and the address."""
        found = f" ({', '.join(self.found)})" if self.found else ""
        return f"Platform: {self.name}{found}, listening on {address}, port {port}"


def check_key(platform: Platform | None, settings: ServerSettings, address: str) -> str | None:
    """Whether the server may start with these keys, or without one.

    Returns:
        a warning, or None.

    Raises:
        SettingsError: a platform makes the server listen for everybody, and there is no key; or there are keys, and
            settings.no_key too.
    """
    has_key = settings.api_key is not None or settings.api_keys is not None
    if has_key and settings.no_key:
        raise SettingsError("there are API keys, and no_key (--no-key) says that none is needed: leave one of them out")
    if has_key:
        if platform is not None and platform.keys is Keys.USELESS:
            return f"{platform.name} keeps the Authorization header: no request has a key then, and all are refused"
        return None
    if settings.no_key or address in LOOPBACK or (platform is not None and platform.keys is not Keys.NEEDED):
        return None
    if platform is None:
        return "other machines can use this server: set QWONNX_API_KEY, or give --api-keys, to require a key"
    raise SettingsError(
        f"on {platform.name} the server listens on {address} and has no key: set QWONNX_API_KEY or give --api-keys, or"
        " give --no-key (QWONNX_NO_KEY=true) if the platform lets only your callers through"
    )


def find(name: str, environment: _Environment, root: Path = Path("/")) -> Platform | None:
    """The platform of this name, from its variables; None if there is none.

    Args:
        name: a PlatformName; "auto" is the first one whose variables or folders are there.
        environment: the variables.
        root: of the file system.

    Raises:
        SettingsError: a platform's variable is malformed, or its package is not installed.
    """
    wanted = PlatformName(name)
    if wanted is PlatformName.AUTO:
        wanted = next((each for each, signs in _SIGNS if signs(environment, root)), PlatformName.NONE)
    if wanted is PlatformName.NONE:
        return None
    return _PLATFORMS[wanted](environment, root)


def _azure(environment: _Environment, root: Path) -> Platform:
    # The platform's host is on the same machine, and checks its own keys.
    port = _port(environment, "FUNCTIONS_CUSTOMHANDLER_PORT")
    found = _told(environment, "FUNCTIONS_CUSTOMHANDLER_PORT")
    limits = {"QWONNX_MAX_ANSWER_SECONDS": "225"}  # its load balancer closes connections after 230
    return Platform(PlatformName.AZURE, port, _ONLY_THIS_MACHINE, found, None, limits)


def _cloud_run(environment: _Environment, root: Path) -> Platform:
    limits = {"QWONNX_SHUTDOWN_SECONDS": "4"}  # 10 seconds after SIGTERM the instance ends; clients get the others
    if seconds := _number(environment, "CLOUD_RUN_TIMEOUT_SECONDS"):
        limits["QWONNX_MAX_ANSWER_SECONDS"] = str(max(1, seconds - 1))
    found = _told(environment, "K_SERVICE", "PORT", "CLOUD_RUN_TIMEOUT_SECONDS")
    return Platform(PlatformName.CLOUD_RUN, _port(environment, "PORT"), found=found, defaults=limits)


def _cloudevents(environment: _Environment, root: Path) -> Platform:
    if find_spec("cloudevents") is None:
        raise SettingsError(f"events need the package cloudevents: {how_to_install('cloudevents')}")
    return Platform(PlatformName.CLOUDEVENTS, _port(environment, "PORT"), found=_told(environment, "K_SERVICE", "PORT"))


def _kserve(environment: _Environment, root: Path) -> Platform:
    folder = root / "mnt" / "models"
    found = (*_told(environment, "PORT"), *_there(folder))
    port = _port(environment, "PORT")  # Knative's, in serverless mode
    return Platform(PlatformName.KSERVE, port, found=found, artifact=folder, keys=Keys.OPTIONAL)


def _sagemaker(environment: _Environment, root: Path) -> Platform:
    folder = Path(environment.get("SAGEMAKER_MODEL_PATH") or root / "opt" / "ml" / "model")
    found = (*_told(environment, "SAGEMAKER_BIND_TO_PORT", "SAGEMAKER_MODEL_PATH"), *_there(folder))
    # Of serverless endpoints; others take more: set QWONNX_MAX_BODY_BYTES there.
    limits = {"QWONNX_MAX_BODY_BYTES": "4MiB", "QWONNX_MAX_ANSWER_SECONDS": "58"}
    port = _port(environment, "SAGEMAKER_BIND_TO_PORT")
    return Platform(PlatformName.SAGEMAKER, port, ALL_ADDRESSES, found, folder, limits, Keys.USELESS)


def _vertex(environment: _Environment, root: Path) -> Platform:
    names = ("AIP_HTTP_PORT", "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE", "AIP_STORAGE_URI")
    return Platform(
        PlatformName.VERTEX,
        _port(environment, "AIP_HTTP_PORT"),
        found=_told(environment, *names),
        artifact=_stored(environment.get("AIP_STORAGE_URI", "").strip(), root),
        keys=Keys.USELESS,
        health_route=_route(environment, "AIP_HEALTH_ROUTE", "/health"),
        predict_route=_route(environment, "AIP_PREDICT_ROUTE", "/predict"),
    )


# In the order of certainty. PORT alone is the weakest sign: KServe's and SageMaker's containers may have one, too.
_SIGNS: tuple[tuple[PlatformName, Callable[[_Environment, Path], bool]], ...] = (
    (PlatformName.AZURE, lambda environment, root: _has(environment, "FUNCTIONS_CUSTOMHANDLER_PORT")),
    (PlatformName.VERTEX, lambda environment, root: any(name.startswith("AIP_") for name in environment)),
    (
        PlatformName.SAGEMAKER,
        lambda environment, root: (
            any(name.startswith("SAGEMAKER_") for name in environment) or (root / "opt" / "ml" / "model").is_dir()
        ),
    ),
    (PlatformName.KSERVE, lambda environment, root: (root / "mnt" / "models").is_dir()),
    (PlatformName.CLOUD_RUN, lambda environment, root: _has(environment, "K_SERVICE", "PORT")),
)
_PLATFORMS: Mapping[PlatformName, Callable[[_Environment, Path], Platform]] = {
    PlatformName.AZURE: _azure,
    PlatformName.CLOUD_RUN: _cloud_run,
    PlatformName.CLOUDEVENTS: _cloudevents,
    PlatformName.KSERVE: _kserve,
    PlatformName.SAGEMAKER: _sagemaker,
    PlatformName.VERTEX: _vertex,
}
_FILES: Mapping[PlatformName, str] = {
    PlatformName.AZURE: "qwonnx.handlers.functions.azure_custom_handler",
    PlatformName.CLOUD_RUN: "qwonnx.handlers.functions.cloud_run",
    PlatformName.CLOUDEVENTS: "qwonnx.handlers.functions.cloudevents",
    PlatformName.KSERVE: "qwonnx.handlers.functions.kserve",
    PlatformName.SAGEMAKER: "qwonnx.handlers.functions.sagemaker",
    PlatformName.VERTEX: "qwonnx.handlers.functions.vertex",
}


def _stored(uri: str, root: Path) -> Path | None:
    """The folder of a storage URI: a path, or a bucket that is mounted. Nothing is downloaded."""
    if not uri:
        return None
    if uri.startswith("gs://"):
        return root / "gcs" / uri.removeprefix("gs://").strip("/")  # where Cloud Storage FUSE mounts buckets
    return Path(uri.removeprefix("file://"))


def _port(environment: _Environment, name: str) -> int:
    port = _number(environment, name)
    if port is None:
        return _DEFAULT_PORT
    if not 1 <= port <= 65535:
        raise SettingsError(f"{name} is {port}: give a port from 1 to 65535")
    return port


def _number(environment: _Environment, name: str) -> int | None:
    text = environment.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise SettingsError(f"{name} is {text!r}: give a whole number")
    return int(text)


def _route(environment: _Environment, name: str, default: str) -> str:
    route = environment.get(name, "").strip() or default
    if not route.startswith("/") or any(character in route for character in "?# {}"):
        raise SettingsError(f"{name} is {route!r}: give a path such as {default}")
    return route


def _has(environment: _Environment, *names: str) -> bool:
    return any(environment.get(name, "").strip() for name in names)


def _told(environment: _Environment, *names: str) -> tuple[str, ...]:
    return tuple(f"{name}={environment[name].strip()}" for name in names if environment.get(name, "").strip())


def _there(folder: Path) -> tuple[str, ...]:
    return (str(folder),) if folder.is_dir() else ()
