"""`qwonnx serve`: the OpenAI-compatible endpoint on one address.

The order of the imports inside is the order of the start: listen, load the engine in a thread, and import the server
meanwhile. ONNX Runtime creates the session without Python's lock, so both take little more time than one.
"""

from __future__ import annotations

import json
import logging
import shlex
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwonnx.handlers.cli.serve_options import ServeOptions, read_options
from qwonnx.handlers.settings import LogFormat
from qwonnx.runtime.engine.startup import StartUp
from qwonnx.runtime.machine import prepare_process, settle_process

if TYPE_CHECKING:
    from qwonnx.handlers.server import Server


def serve(words: Sequence[str]) -> None:
    """Run the command with the words after `qwonnx serve`; returns after a signal.

    Raises:
        CommandError, SettingsError: the options cannot be used.
        ArtifactError, SessionError, ...: the engine cannot be opened.
    """
    prepare_process()
    startup = StartUp()
    with startup.phase("options"):
        options = read_options(words)

    from qwonnx.handlers.http.listener import bind

    with bind(options.host, options.port) as listener:
        _say_where(listener, options)
        _serve_at(listener, options, startup)
    print("Stopped. Goodbye.", flush=True)


def _serve_at(listener: socket.socket, options: ServeOptions, startup: StartUp) -> None:
    with startup.phase("artifact"):
        from qwonnx.handlers.engine_start import open_engine
        from qwonnx.handlers.http.listener import url_of
        from qwonnx.handlers.model_host import HostStatus, ModelHost
        from qwonnx.runtime.artifact.folder import open_artifact

        artifact = open_artifact(options.artifact)
    print(f"Loading {options.artifact} ...", flush=True)
    servers: list[Server] = []

    def on_ready() -> None:
        settle_process()
        scheme = "http" if options.server.tls_certificate is None else "https"
        url = url_of(listener).replace("http", scheme, 1)
        print(_greeting(url, model.model_names()[0], needs_key=_needs_key(options)), flush=True)
        if options.server.ui:
            print(f"A page for conversations is at {url}/", flush=True)

    def on_failure(error: Exception) -> None:
        for server in servers:
            server.should_exit = True

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.server.log_format == LogFormat.JSON:
        from qwonnx.handlers.http.log_lines import JsonLines

        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    model = ModelHost(
        lambda: open_engine(artifact, options.runtime, verify=options.verify, startup=startup),
        model_names=options.server.model_names,
        any_model_name=options.server.any_model_name,
        on_ready=on_ready,
        on_failure=on_failure,
    )
    model.start()

    with startup.phase("imports of the server"):
        from qwonnx.handlers.app import create_app
        from qwonnx.handlers.server import Server

        platform = options.platform
        make_app = create_app if platform is None else platform.application
        servers.append(Server(model, options.server, owns_process=True, make_app=make_app))
    if model.status is HostStatus.READY:  # a small model is ready first, and has reported what had ended by then
        startup.report()
    if model.error is None:
        servers[0].run(sockets=[listener])
    if model.error is not None:
        raise model.error


def _needs_key(options: ServeOptions) -> bool:
    return options.server.api_key is not None or options.server.api_keys is not None


def _say_where(listener: socket.socket, options: ServeOptions) -> None:
    """What was found of a platform, and who can reach the server."""
    if options.platform is not None:
        print(options.platform.described(options.host, listener.getsockname()[1]), flush=True)
    if options.warning is not None:
        print(f"qwonnx: warning: {options.warning}", file=sys.stderr)


def _greeting(url: str, name: str, *, needs_key: bool) -> str:
    """The server's address, and a command to paste into a shell."""
    body = {
        "model": name,
        "messages": [{"role": "user", "content": "What is Germany called in Swahili?"}],
        "chat_template_kwargs": {"enable_thinking": False},  # so that an answer comes at once
        "max_tokens": 64,
    }
    lines = [
        f"Serving {name} at {url}/v1 (Ctrl-C ends it). Try:",
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json' \\",
        f"    -d {shlex.quote(json.dumps(body, ensure_ascii=False))}",
    ]
    if needs_key:
        lines.insert(2, '    -H "authorization: Bearer $QWONNX_API_KEY" \\')
    return "\n".join(lines)
