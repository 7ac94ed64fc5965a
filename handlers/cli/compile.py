"""`qwonnx compile`: compile an artifact for the GPU of this machine, so that a server builds nothing."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qwonnx.handlers.cli.arguments import ArtifactArgument
from qwonnx.handlers.cli.engine_options import runtime_settings
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.runtime.quantities import bytes_text


class Provider(StrEnum):
    """What compiles."""

    TENSORRT = "tensorrt"


def compile_model(
    artifact: ArtifactArgument,
    out: Annotated[
        Path | None,
        typer.Argument(help="Write a copy of the artifact with the compiled model here; by default into ARTIFACT."),
    ] = None,
    provider: Annotated[
        Provider, typer.Option(help="What compiles. tensorrt: NVIDIA's TensorRT 10.")
    ] = Provider.TENSORRT,
    device: Annotated[
        str | None, typer.Option(help="The GPU that compiles: tensorrt, or tensorrt:1, ...; by default the first.")
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests that a server may run at once.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Tokens of prompt and answer that it may have.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Tokens of a prompt that a step may read.")] = None,
) -> None:
    """Compile an artifact for the GPU of this machine. Experimental: it has not run on a GPU yet.

    The artifact must be exported with --target portable --weights fp32, from a model without experts. The engine is for
    one kind of GPU, and for the versions of TensorRT and ONNX Runtime that are installed. It takes steps up to the
    given sizes: give those of qwonnx serve, which then uses it.

    Examples:

        qwonnx compile ./qwen-portable

        qwonnx compile ./qwen-portable ./out --max-num-seqs 16 --max-model-len 8192
    """
    from qwonnx.runtime.model.compiling import compile_artifact

    settings = runtime_settings(
        device=device or provider.value,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    if out is not None and out.exists():
        raise CommandError(f"{out} exists: name another folder, or remove it")
    try:
        made = compile_artifact(artifact, settings, out=out, on_build=typer.echo)
    except OSError as error:
        where = error.filename or out or artifact
        raise CommandError(f"cannot write {where} ({error.strerror or error}): free some space, or give OUT") from error
    identity, size = made.model.identity, sum(entry.size for entry in made.model.files)
    typer.echo(
        f"{made.folder}: {bytes_text(size)}, for {identity.gpu} ({identity.compute_capability}), TensorRT"
        f" {identity.tensorrt}, ONNX Runtime {identity.onnxruntime}"
    )
