"""The options of `qwonnx serve`, read with the standard library: typer would take a fifth of the time to an answer.

An option that sets a field of the settings has the field's name, but for a few whose field names a unit.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qwonnx.handlers.cli.word_parser import WordParser, port_of
from qwonnx.handlers.functions.artifact_folder import artifact_folder
from qwonnx.handlers.models.artifact_path import artifact_path
from qwonnx.handlers.settings import CapsuleCompression, LogFormat, MetricsNames, PlatformName, ServerSettings
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.quantities import parse_bytes
from qwonnx.runtime.settings import Residency, RuntimeSettings

if TYPE_CHECKING:
    from qwonnx.handlers.functions.platform import Platform

HELP = "Serve an artifact over HTTP, until Ctrl-C."
_DESCRIPTION = f"""{HELP}

If the environment variable QWONNX_API_KEY is set, requests need this key; --api-keys gives several keys.
Every option also has a variable: QWONNX_MAX_NUM_SEQS, QWONNX_NUM_THREADS, ...

Examples:
  qwonnx serve ./qwen-int4
  qwonnx serve ./qwen-int4 --capsules /mnt/shared/capsules
  qwonnx serve ./for-many --adapter support=./support --adapter legal=./legal
  QWONNX_API_KEY=secret qwonnx serve ./qwen-int4 --host 0.0.0.0 --port 80
  PORT=8080 QWONNX_API_KEY=secret qwonnx serve ./qwen-int4 --platform auto"""
_DEFAULT_ADDRESS, _DEFAULT_PORT = "127.0.0.1", 8000
# Where no platform is asked for, its code is not imported, unless one of these may have been forgotten.
_SIGNS = ("FUNCTIONS_CUSTOMHANDLER_PORT", "AIP_HTTP_PORT", "K_SERVICE")
_SIZES = {
    "cache_bytes": "--cache-bytes",
    "prefix_cache_bytes": "--prefix-cache-bytes",
    "memory_bytes": "--memory",
    "adapter_bytes": "--adapter-bytes",
}
_Settings = TypeVar("_Settings", RuntimeSettings, ServerSettings)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the command line and the environment ask for.

    artifact: its folder.
    host, port: where to listen.
    platform: that was found or named, or None.
    warning: about keys or a platform, or None.
    verify: check the hashes of the weights first.
    runtime, server: the settings.
    """

    artifact: Path
    host: str
    port: int
    platform: Platform | None
    warning: str | None
    verify: bool
    runtime: RuntimeSettings
    server: ServerSettings


def read_options(words: Sequence[str]) -> ServeOptions:
    """Read the words after `qwonnx serve`. --help prints the help and exits.

    Raises:
        CommandError: an option is unknown, or is not of its kind.
        SettingsError: a value is out of range, a variable of the environment is malformed, there is no artifact, or a
            platform needs a key.
    """
    given = {name: value for name, value in vars(parser().parse_args(words)).items() if value is not None}
    sizes = {name: parse_bytes(given[name], option, at_least=0) for name, option in _SIZES.items() if name in given}
    given.update(sizes)
    for name in ("cors_origins", "adapters"):
        if name in given:
            given[name] = tuple(given[name])
    server = ServerSettings.from_environment()
    name = given.get("platform", server.platform)
    platform = None if name == PlatformName.NONE else _platform(name)
    if platform is not None:
        server = platform.settings(os.environ)
    server = _changed(server, given)
    host = given.get("host", _DEFAULT_ADDRESS if platform is None else platform.address)
    return ServeOptions(
        artifact=artifact_folder(given.get("artifact"), platform, os.environ),
        host=host,
        port=given.get("port", _DEFAULT_PORT if platform is None else platform.port),
        platform=platform,
        warning=_warning(platform, server, host, name),
        verify=given["verify"],
        runtime=_changed(RuntimeSettings.from_environment(), given),
        server=server,
    )


def _platform(name: str) -> Platform | None:
    from qwonnx.handlers.functions.platform import find

    return find(name, os.environ)


def _warning(platform: Platform | None, server: ServerSettings, host: str, name: str) -> str | None:
    """What to say at the start about keys, or about a platform that was not asked for.

    Raises:
        SettingsError: the server may not start without a key, or with this one.
    """
    if platform is None and host == _DEFAULT_ADDRESS and not server.no_key:
        signs = [each for each in _SIGNS if os.environ.get(each)] if name == PlatformName.NONE else []
        return f"{signs[0]} is set and not read: --platform auto listens where the platform asks" if signs else None
    from qwonnx.handlers.functions.platform import check_key

    return check_key(platform, server, host)


def parser() -> WordParser:
    parser = WordParser("qwonnx serve", _DESCRIPTION)
    add = parser.add_argument
    add(
        "artifact",
        type=artifact_path,
        nargs="?",
        metavar="ARTIFACT",
        help="an artifact's folder, or a pulled model's name; by default QWONNX_ARTIFACT, or the platform's folder",
    )
    add(
        "--host",
        help="address to listen on; 0.0.0.0 accepts other machines; by default 127.0.0.1, or what --platform needs",
    )
    add(
        "--port",
        type=port_of,
        help="port to listen on; 0 takes a free one; by default 8000, or what --platform says: the variable PORT counts"
        " only with it",
    )
    add(
        "--platform",
        choices=[each.value for each in PlatformName],
        help="read a platform's variables for address, port, folder and limits, and add its routes; auto finds it"
        " out; none reads none",
    )
    add("--max-num-seqs", type=int, metavar="N", help="requests that run at once")
    add("--max-model-len", type=int, metavar="TOKENS", help="tokens of prompt and answer together")
    add("--max-num-batched-tokens", type=int, metavar="TOKENS", help="tokens of a prompt read in one step")
    add(
        "--cache-bytes",
        metavar="BYTES",
        help="memory for running requests, such as 8GB; by default half of what is free after loading",
    )
    add(
        "--prefix-cache-bytes",
        metavar="BYTES",
        help="memory to keep beginnings of prompts for reuse, such as 500MB; 0 turns it off",
    )
    add(
        "--memory",
        dest="memory_bytes",
        metavar="BYTES",
        help="memory for the whole process, such as 8GB; if the weights do not fit, experts are read when they are"
        " needed; by default the container's or machine's, 0 is no limit",
    )
    add("--threads", dest="num_threads", type=int, metavar="N", help="threads of ONNX Runtime; by default all cores")
    add(
        "--kernels",
        choices=[each.value for each in Kernels],
        help="kernels of the graph's own operators; by default native ones if they can be loaded",
    )
    add(
        "--device",
        help="where it runs: cpu, cuda, cuda:1, ..., tensorrt, rtx; by default the first that the artifact is for",
    )
    add(
        "--weights-residency",
        choices=[each.value for each in Residency],
        help="how weights come into memory: map when they are needed; willneed (the default) also reads ahead; populate"
        " reads all before the first answer; lock also keeps them there",
    )
    add(
        "--stages",
        type=_names,
        metavar="ADDRESS,...",
        help="where stages 2, 3, ... of a model in stages listen, in their order; ARTIFACT is stage 1",
    )
    add(
        "--model-name",
        metavar="NAME[,NAME]",
        help="model name in requests, or several, the first of which is shown; by default the checkpoint's",
    )
    add(
        "--any-model-name",
        action="store_true",
        default=None,
        help="take every model name in requests: coding tools ask for a second, smaller model",
    )
    add(
        "--adapter",
        dest="adapters",
        action="append",
        metavar="NAME=FOLDER",
        help="a LoRA adapter that requests can name as their model; may be given several times. The artifact must have"
        " been exported with --runtime-adapters",
    )
    add("--max-adapters", type=int, metavar="N", help="adapters in memory at once")
    add("--max-adapter-rank", type=int, metavar="N", help="largest rank; by default that of the given adapters")
    add("--adapter-bytes", metavar="BYTES", help="memory for adapters")
    add(
        "--adapters-folder",
        metavar="FOLDER",
        help="adapters that calls with the key in QWONNX_ADMIN_KEY may load while the model answers",
    )
    add("--reasoning-budget", type=int, metavar="TOKENS", help="tokens of reasoning at most; then the model answers")
    add(
        "--effort-budgets",
        metavar="EFFORT=TOKENS[,...]",
        help="the same for each reasoning effort, such as low=1024,medium=4096",
    )
    add(
        "--api-keys",
        metavar="FILE",
        help="file of keys, one `name: key` a line; requests need one of them; each key has its own kept prefixes",
    )
    add(
        "--share-prefixes",
        action="store_true",
        default=None,
        help="all keys use each other's kept prefixes; times tell what was sent",
    )
    add(
        "--no-key",
        action="store_true",
        default=None,
        help="need no key on a platform that lets only some callers reach the server",
    )
    add(
        "--capsules",
        metavar="PLACE",
        help="keep states of conversations here for other instances: a folder, or a URL such as s3://...",
    )
    add(
        "--capsule-compression",
        choices=[each.value for each in CapsuleCompression],
        help="zstd writes smaller capsules and takes processor time",
    )
    add(
        "--allow-special-tokens",
        action="store_true",
        default=None,
        help="special tokens that a message spells out count as such: it can then forge a turn",
    )
    add(
        "--strict-tools",
        action="store_true",
        default=None,
        help="refuse requests with hosted tools such as web_search, which are ignored and named otherwise",
    )
    add("--header-seconds", type=float, metavar="SECONDS", help="time for a request's headers")
    add("--body-seconds", type=float, metavar="SECONDS", help="time for a request's body")
    add(
        "--max-connections",
        type=int,
        metavar="N",
        help="open connections; by default 512, or what the limit of open files (ulimit -n) allows",
    )
    add(
        "--hold-while-loading",
        type=int,
        metavar="N",
        help="requests that wait while the model loads instead of being refused",
    )
    add(
        "--max-requests-in-flight",
        type=int,
        metavar="N",
        help="POST requests of all clients that are answered or wait at a time; further ones get a 429",
    )
    add("--key-max-requests", type=int, metavar="N", help="the same of one key, unless its line gives another number")
    add("--key-tokens-per-minute", type=int, metavar="N", help="tokens that one key may use, prompts and answers")
    add("--metrics-names", choices=[each.value for each in MetricsNames], help="vllm adds vLLM's names to /metrics")
    add("--log-format", choices=[each.value for each in LogFormat], help="form of the log's lines")
    add(
        "--cors-origin",
        dest="cors_origins",
        action="append",
        metavar="ORIGIN",
        help="origin whose pages may use the server from a browser, or *; may be given several times",
    )
    add("--tls-certificate", metavar="FILE", help="certificate chain in PEM, for HTTPS; needs --tls-key")
    add("--tls-key", metavar="FILE", help="its private key in PEM")
    add(
        "--telemetry",
        action="store_true",
        default=None,
        help="spans and metrics for OpenTelemetry, by its OTEL_* variables",
    )
    add("--ui", action="store_true", default=None, help="a page for conversations at /, for browsers")
    add("--verify", action="store_true", help="also check the hashes of the weights first")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def _changed(settings: _Settings, given: dict[str, Any]) -> _Settings:
    names = {field.name for field in dataclasses.fields(settings)}
    return dataclasses.replace(settings, **{name: value for name, value in given.items() if name in names})
