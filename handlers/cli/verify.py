"""`qwonnx verify`: decide whether an artifact is the model of the checkpoint that it was exported from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qwonnx.handlers.cli.arguments import ArtifactArgument, checkpoint_of, pulled_from
from qwonnx.handlers.cli.engine_options import KernelsOption, runtime_settings
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.notes import print_notes
from qwonnx.handlers.cli.tables import facts_table
from qwonnx.handlers.cli.text_file import read_text
from qwonnx.handlers.cli.verify_progress import note_that_it_goes_on, verify_progress
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.quantities import parse_bytes

if TYPE_CHECKING:  # imports torch
    from qwonnx.export.verification.result import Verification
    from qwonnx.export.verification.verification import VerificationOptions

_LAYERS_IN_A_ROW = 6


def verify(
    artifact: ArtifactArgument,
    against: Annotated[
        str | None,
        typer.Option(
            help="The checkpoint: a folder in Hugging Face layout, a GGUF file, a hub repo id or a URL. By default the"
            " one that a pulled model came from.",
        ),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="A UTF-8 text to read, instead of a short built-in one.")] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(min=0, help="The largest mean KL divergence in nats, in the place of the recipe's bound."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory limit for weights and activations of a layer: 2GB, 6GiB. By default half of what is free.",
            metavar="BYTES",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="The folder in which an interrupted verification is kept; by default .NAME.verify beside ARTIFACT.",
            metavar="FOLDER",
        ),
    ] = None,
    weights_file: Annotated[
        str | None, typer.Option(help="The one that `qwonnx export` was given, if any.", metavar="FILE")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="The adapters that `qwonnx export` was given, in their order.", metavar="ADAPTER"),
    ] = None,
    kernels: KernelsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Run transformers and the artifact on the same tokens, and say whether they are the same model.

    The checkpoint runs layer by layer, so a model of any size is verified in a few gigabytes. The command ends with a
    verdict and its exit status: 0 equal up to rounding, or quantised as its recipe says; 1 not the same model; 3 cannot
    tell. After an interruption the same command goes on. See docs/verify.md.

    Examples:

        qwonnx verify ./qwen-int4 --against ./Qwen3.5-0.8B

        qwonnx verify ./qwen-int4 --against ./checkpoint --text a.txt --max-kl 0.05

        qwonnx verify ./qwen-large --against ./Qwen3.5-397B-A17B --memory 6GB

        qwonnx verify qwen3.5-0.8b

        qwonnx verify ./tuned --against ./Qwen3.5-0.8B --adapter ./adapter
    """
    memory_bytes = None if memory is None else parse_bytes(memory, "--memory")
    from qwonnx.export.verification.verification import VerificationOptions

    options = VerificationOptions(
        text=None if text is None else read_text(text),
        memory_bytes=memory_bytes,
        max_kl=max_kl,
        weights_file=weights_file,
        kernels=Kernels(runtime_settings(kernels=kernels).kernels),
        adapters=tuple(adapter or ()),
        work=work,
    )
    verified = run_verification(artifact, _checkpoint(artifact, against), options)
    if as_json:
        typer.echo(json.dumps(verified.to_json(), indent=1))
    else:
        print_verification(verified)
    report = verified.report
    if report is not None and report.range_warning is not None:
        typer.echo(f"qwonnx: {report.range_warning}", err=True)
    status = verified.decision.verdict.exit_status
    if status:
        typer.echo(f"qwonnx: {verified.decision.sentence}", err=True)
        raise typer.Exit(status)


def _checkpoint(artifact: Path, against: str | None) -> str:
    """
    Raises:
        CommandError: none is given, and the artifact was not pulled.
    """
    if against is not None:
        return checkpoint_of(against, at_commit=True)
    found = pulled_from(artifact)
    if found is None:
        raise CommandError(f"{artifact} was not pulled: name its checkpoint with --against")
    return found


def run_verification(artifact: Path, against: str, options: VerificationOptions) -> Verification:
    """Verify, with a bar or lines of progress; raises as verify_artifact does."""
    from qwonnx.export.verification.verification import verify_artifact

    with note_that_it_goes_on(artifact, options.work), verify_progress(Console(stderr=True)) as shown:
        return verify_artifact(artifact, against, options, shown.show)


def print_verification(verified: Verification) -> None:
    """Tables, notes, and the verdict as the last line."""
    console = Console()
    report, evidence = verified.report, verified.evidence
    if report is not None and evidence is not None:
        facts: dict[str, object] = {
            "text": verified.text,
            "tokens": report.num_tokens,
            "largest logit difference": f"{report.max_logit_difference:.6f}",
            "mean KL divergence": f"{report.mean_kl:.3e} nats",
            "largest KL divergence": f"{evidence.predictions.kl.max():.3e} nats",
            "top-1 agreement": f"{report.top1_agreement:.2%}",
            "perplexity, checkpoint": f"{report.perplexity_checkpoint:.4f}",
            "perplexity, artifact": f"{report.perplexity_artifact:.4f}",
        }
        if evidence.experts_used is not None:
            facts["experts that the text reaches"] = f"{evidence.experts_used:.0%}"
        console.print(facts_table("Artifact against checkpoint", facts))
        errors = {part.name: f"{part.error:.3%}" for part in evidence.parts}
        if errors:
            ends = {name: {name: errors.pop(name)} for name in ("embedding", "head")}
            rows = {**ends["embedding"], **_by_layers(tuple(errors.values())), **ends["head"]}
            console.print(facts_table("Difference of each part on equal inputs", rows))
        peaks = tuple(f"{peak:.3g}" for peak in report.layer_peaks)
        console.print(facts_table("Largest activation after each layer, checkpoint", _by_layers(peaks)))
    print_notes(console, [], list(verified.notes))
    console.print(verified.decision.sentence, markup=False, highlight=False, soft_wrap=True)


def _by_layers(values: Sequence[str]) -> dict[str, object]:
    """Rows of a table, of a few layers each."""
    rows: dict[str, object] = {}
    for start in range(0, len(values), _LAYERS_IN_A_ROW):
        part = values[start : start + _LAYERS_IN_A_ROW]
        rows[f"layers {start} to {start + len(part) - 1}"] = "  ".join(part)
    return rows
