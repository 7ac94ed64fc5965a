"""`qwonnx route`: one address in front of several servers. It starts without typer, as `qwonnx serve` does."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.word_parser import WordParser, port_of
from qwonnx.handlers.routing.replicas import Address
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.errors import SettingsError

HELP = "Route requests to several servers, each conversation to where its states are."
_DESCRIPTION = f"""{HELP}

A new conversation goes to the server that the hash of its system prompt and tools names, as long as no server has more
than 1.25 times the mean of running requests; its further turns go to the same server. A request is asked again
elsewhere if its server fails before the first token; a stream that breaks off later ends with an error event. Keys are
the servers' matter, and are passed on.

Examples:
  qwonnx route --to http://10.0.0.1:8000,http://10.0.0.2:8000
  qwonnx route --to dns:qwonnx.default.svc.cluster.local:8000 --host 0.0.0.0"""
_DNS = "dns:"
_DNS_SECONDS = 5.0
_DEFAULT_PORT = 8000


def route(words: Sequence[str]) -> None:
    """Run the command with the words after `qwonnx route`; returns after a signal.

    Raises:
        CommandError, SettingsError: the options cannot be used.
    """
    options = parser().parse_args(words)
    settings = ServerSettings.from_environment()
    if options.shutdown_seconds is not None:
        settings = replace(settings, shutdown_seconds=options.shutdown_seconds)
    names, addresses = _places(options.to)

    from qwonnx.handlers.app import APIS
    from qwonnx.handlers.http.api import Apis
    from qwonnx.handlers.http.body import BodyLimits
    from qwonnx.handlers.http.body_budget import BodyBudget
    from qwonnx.handlers.http.listener import bind, url_of
    from qwonnx.handlers.routing.router import Router
    from qwonnx.handlers.routing.upstream import resolved
    from qwonnx.handlers.server import Server

    async def find() -> Sequence[Address]:
        found = await asyncio.gather(*(resolved(each.host, each.port) for each in names))
        return [*addresses, *(address for each in found for address in each)]

    limits = BodyLimits(
        settings.max_body_bytes,
        settings.body_seconds,
        BodyBudget(max(settings.max_bodies_bytes, settings.max_body_bytes)),
    )
    router = Router(find, find_seconds=_DNS_SECONDS if names else None, apis=Apis(APIS), limits=limits)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with bind(options.host, options.port) as listener:
        print(f"Routing {url_of(listener)} to {options.to} (Ctrl-C ends it)", flush=True)
        Server(router, settings, make_app=lambda host, settings: router.app, owns_process=True).run(sockets=[listener])
    print("Stopped. Goodbye.", flush=True)


def parser() -> WordParser:
    parser = WordParser("qwonnx route", _DESCRIPTION)
    add = parser.add_argument
    add("--to", required=True, help="URLs with commas between them, or dns:NAME:PORT, all addresses of a name")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 accepts other machines")
    add("--port", type=port_of, default=8080, help="port to listen on; 0 takes a free one")
    add(
        "--shutdown-seconds",
        type=float,
        metavar="SECONDS",
        help="time for running answers after a signal",
    )
    return parser


def _places(text: str) -> tuple[list[Address], list[Address]]:
    """Names to look up again and again, and fixed addresses.

    Raises:
        CommandError: a place is neither.
    """
    names: list[Address] = []
    addresses: list[Address] = []
    for place in filter(None, map(str.strip, text.split(","))):
        if place.startswith(_DNS):
            host, _, port = place.removeprefix(_DNS).rpartition(":")
            names.append(Address(host or port, _port(port) if host else _DEFAULT_PORT))
        else:
            addresses.append(_address(place))
    if not names and not addresses:
        raise CommandError("--to names no server: give URLs, or dns:NAME:PORT")
    return names, addresses


def _address(url: str) -> Address:
    try:
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
    except ValueError as error:
        raise CommandError(f"--to has {url!r} ({error}): give a URL such as http://10.0.0.1:8000") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise CommandError(f"--to has {url!r}: give a URL without a path, such as http://10.0.0.1:8000")
    if parts.username or parts.password:
        raise SettingsError("--to has a URL with a password: keys are sent by clients, and passed on")
    return Address(parts.hostname, port, tls)


def _port(text: str) -> int:
    try:
        return port_of(text)
    except argparse.ArgumentTypeError as error:
        raise CommandError(f"--to: {error}") from error
