"""Ray Serve: `serve run qwonnx.handlers.ray.app:application` runs replicas of the application.

Replicas read QWONNX_ARTIFACT and the other QWONNX_* variables, as `qwonnx serve` does. A replica counts as started when
its model has answered a token.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwonnx.handlers.http.access_log import REQUEST_ID_HEADER
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.install import how_to_install
from qwonnx.runtime.settings import RuntimeSettings

try:
    from ray import serve
except ImportError as error:
    raise SettingsError(f"Ray Serve is not installed: {how_to_install('ray')}") from error

_ARGUMENTS = {"min_replicas": 1, "max_replicas": 4}


def application(arguments: Mapping[str, str | int] | None = None) -> serve.Application:
    """The application for Ray Serve: an `import_path` with `args`, or a function to call.

    A replica takes as many requests as its engine accepts: max_num_seqs that run and max_queued_requests that wait. Ray
    starts replicas when more than max_num_seqs requests run in each.

    Args:
        arguments: min_replicas (1) and max_replicas (4).

    Raises:
        SettingsError: an argument is unknown or no number, a variable is malformed, or QWONNX_NUM_THREADS is missing.
    """
    given = _ARGUMENTS | _numbers(arguments or {})
    settings = RuntimeSettings.from_environment()
    if settings.num_threads is None:
        raise SettingsError("QWONNX_NUM_THREADS is not set: Ray places replicas by the processors that each one needs")
    if not 0 <= given["min_replicas"] <= given["max_replicas"] or given["max_replicas"] < 1:
        raise SettingsError(f"min_replicas and max_replicas are {given}: give 0 <= min_replicas <= max_replicas")
    deployment = serve.deployment(
        serve.ingress(_build)(),
        name="qwonnx",
        max_ongoing_requests=settings.max_num_seqs + settings.max_queued_requests,
        autoscaling_config={**given, "target_ongoing_requests": settings.max_num_seqs},
        ray_actor_options={"num_cpus": settings.num_threads},
        graceful_shutdown_timeout_s=ServerSettings.from_environment().shutdown_seconds,
    )
    return deployment.bind()


class OneRequestId:
    """ASGI middleware: leaves the header x-request-id to Ray's proxy, which adds the same id again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                del headers[REQUEST_ID_HEADER]
                message = {**message, "headers": headers.raw}
            await send(message)

        await self._app(scope, receive, send_without_id)


def _build() -> ASGIApp:
    """In a replica: the application, after its model has answered a token.

    Raises:
        SettingsError, ArtifactError, SessionError, ...: the model cannot be loaded; Ray reports it.
    """
    from qwonnx.handlers.app import create_app, host_from_environment

    settings = ServerSettings.from_environment()
    host = host_from_environment(settings)
    host.wait()
    return OneRequestId(create_app(host, settings))


def _numbers(arguments: Mapping[str, str | int]) -> dict[str, int]:
    numbers = {}
    for name, value in arguments.items():
        if name not in _ARGUMENTS:
            raise SettingsError(f"{name!r} is no argument: give {', '.join(_ARGUMENTS)}")
        if not str(value).isdecimal():
            raise SettingsError(f"{name} is {value!r}: give a whole number")
        numbers[name] = int(value)
    return numbers
