"""`qwonnx serve`: the OpenAI-compatible endpoint on one address."""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from qwonnx.handlers.cli.engine_options import DeviceOption, KernelsOption, runtime_settings
from qwonnx.handlers.settings import CapsuleCompression, ServerSettings
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.machine import bound_heaps
from qwonnx.runtime.quantities import parse_bytes
from qwonnx.runtime.settings import Residency

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    artifact: Annotated[Path, typer.Argument(help="An artifact's folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 accepts other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests that run at once.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Tokens of prompt and answer together.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Tokens of a prompt read in one step.")] = None,
    cache_bytes: Annotated[
        str | None,
        typer.Option(help="Memory for running requests, such as 8GB; by default half of what is free after loading."),
    ] = None,
    prefix_cache_bytes: Annotated[
        str | None,
        typer.Option(
            help="Memory to keep beginnings of prompts for reuse, such as 500MB; by default 1GiB, 0 turns it off."
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory for the whole process, such as 8GB. If the weights do not fit, experts are read when they are"
            " needed. By default the container's or machine's, 0 is no limit."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of ONNX Runtime; by default all cores.")] = None,
    kernels: KernelsOption = None,
    device: DeviceOption = None,
    weights_residency: Annotated[
        Residency | None,
        typer.Option(
            help="How weights come into memory: map when they are needed; willneed (the default) also reads ahead;"
            " populate reads all before the first answer; lock also keeps them there."
        ),
    ] = None,
    model_name: Annotated[str | None, typer.Option(help="Model name in requests; by default the checkpoint's.")] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="File of keys, one `name: key` a line; requests need one of them. Each key has its own kept prefixes.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    share_prefixes: Annotated[
        bool,
        typer.Option("--share-prefixes", help="All keys use each other's kept prefixes; times tell what was sent."),
    ] = False,
    capsules: Annotated[
        str | None,
        typer.Option(help="Keep states of conversations here for other instances: a folder, or a URL such as s3://..."),
    ] = None,
    capsule_compression: Annotated[
        CapsuleCompression | None,
        typer.Option(help="zstd writes smaller capsules and takes processor time; by default none."),
    ] = None,
    allow_special_tokens: Annotated[
        bool,
        typer.Option(
            "--allow-special-tokens",
            help="Special tokens that a message spells out count as such: it can then forge a turn.",
        ),
    ] = False,
    header_seconds: Annotated[float | None, typer.Option(help="Time for a request's headers; by default 30.")] = None,
    body_seconds: Annotated[float | None, typer.Option(help="Time for a request's body; by default 30.")] = None,
    max_connections: Annotated[
        int | None,
        typer.Option(help="Open connections; by default 512, or what the limit of open files (ulimit -n) allows."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Also check the hashes of the weights first.")] = False,
) -> None:
    """Serve an artifact to OpenAI's clients, until Ctrl-C.

    If the environment variable QWONNX_API_KEY is set, requests under /v1 need this key; --api-keys gives several keys.
    Every option also has a variable: QWONNX_MAX_NUM_SEQS, QWONNX_NUM_THREADS, ...

    Examples:

        qwonnx serve ./qwen-int4

        qwonnx serve ./qwen-int4 --capsules /mnt/shared/capsules --capsule-compression zstd

        QWONNX_API_KEY=secret qwonnx serve ./qwen-int4 --host 0.0.0.0 --port 80 --model-name qwen
    """
    runtime = runtime_settings(
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        max_num_batched_tokens=max_num_batched_tokens,
        cache_bytes=_bytes(cache_bytes, "--cache-bytes"),
        memory_bytes=_bytes(memory, "--memory"),
        prefix_cache_bytes=_bytes(prefix_cache_bytes, "--prefix-cache-bytes"),
        num_threads=threads,
        kernels=kernels,
        device=device,
        weights_residency=weights_residency,
        allow_special_tokens=allow_special_tokens or None,
    )
    settings = ServerSettings.from_environment()
    if model_name is not None:
        settings = dataclasses.replace(settings, model_name=model_name)
    if api_keys is not None:
        settings = dataclasses.replace(settings, api_keys=str(api_keys))
    if share_prefixes:
        settings = dataclasses.replace(settings, share_prefixes=True)
    if header_seconds is not None:
        settings = dataclasses.replace(settings, header_seconds=header_seconds)
    if body_seconds is not None:
        settings = dataclasses.replace(settings, body_seconds=body_seconds)
    if max_connections is not None:
        settings = dataclasses.replace(settings, max_connections=max_connections)
    if capsules is not None:
        settings = dataclasses.replace(settings, capsules=capsules)
    if capsule_compression is not None:
        settings = dataclasses.replace(settings, capsule_compression=capsule_compression.value)
    bound_heaps()
    opened = open_artifact(artifact, verify=verify)  # an unusable artifact is reported before the server listens
    name = settings.model_name or opened.manifest.source.checkpoint

    from qwonnx.handlers.model_host import ModelHost
    from qwonnx.handlers.server import Server, bind, url_of
    from qwonnx.runtime.engine.engine import Engine

    listener = bind(host, port)
    url = url_of(listener)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    needs_key = settings.api_key is not None or settings.api_keys is not None
    if not needs_key and host not in _LOOPBACK:
        warning = "other machines can use this server: set QWONNX_API_KEY, or give --api-keys, to require a key"
        print(f"qwonnx: warning: {warning}", file=sys.stderr)
    print(f"Loading {artifact} ...", flush=True)

    def stop(error: Exception) -> None:
        server.should_exit = True

    model = ModelHost(
        lambda: Engine.open(artifact, runtime),
        model_name=settings.model_name,
        on_ready=lambda: print(_greeting(url, name, needs_key=needs_key), flush=True),
        on_failure=stop,
    )
    server = Server(model, settings, owns_process=True)
    with listener:
        server.run(sockets=[listener])
    if model.error is not None:
        raise model.error
    print("Stopped. Goodbye.", flush=True)


def _bytes(text: str | None, option: str) -> int | None:
    return None if text is None else parse_bytes(text, option, at_least=0)


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
