"""`qwonnx export`: write an artifact from a checkpoint, with a progress bar and a final table of sizes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer
from rich.console import Console

from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.quantization.recipe import NO_RECIPE, SHIPPED, Preset, Recipe
from qwonnx.export.targets.register import TARGETS
from qwonnx.export.targets.target import Activations
from qwonnx.export.weight_files.memory_budget import check_memory
from qwonnx.handlers.cli.arguments import checkpoint_of
from qwonnx.handlers.cli.choices import FIRST_TARGET, TargetName, default_recipes, summaries
from qwonnx.handlers.cli.engine_options import runtime_settings
from qwonnx.handlers.cli.export_progress import export_progress, note_that_the_artifact_is_whole, note_what_is_kept
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.notes import print_notes
from qwonnx.handlers.cli.system_prompts import bake_prompts, read_prompt
from qwonnx.handlers.cli.tables import weights_table
from qwonnx.handlers.cli.text_file import read_text
from qwonnx.runtime.quantities import bytes_text, parse_bytes

if TYPE_CHECKING:  # imports torch
    from qwonnx.export.checkpoint.weight_source import SkippedPart
    from qwonnx.export.pipeline import ExportOptions
    from qwonnx.export.weight_files.progress import ExportProgress
    from qwonnx.runtime.artifact.manifest import Manifest


class _Calls(TypedDict):
    """What an export reports to."""

    on_progress: Callable[[ExportProgress], None]
    on_skipped: Callable[[SkippedPart], None]
    on_note: Callable[[str], None]


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A folder in Hugging Face layout, a GGUF file, a hub repo id (owner/name, owner/name@revision), the"
            " URL of a folder (s3://, gs://, https://), or an adapter's folder."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The artifact's folder, which must not exist yet.")],
    target: Annotated[TargetName, typer.Option(help=summaries())] = FIRST_TARGET,
    weights: Annotated[
        Preset | None, typer.Option(help="Storage of most weights; int4 unless the recipe says otherwise.")
    ] = None,
    weight_block_size: Annotated[
        int | None,
        typer.Option(help="Input features that share a scale: smaller blocks are more exact and larger on disk."),
    ] = None,
    activations: Annotated[
        Activations | None,
        typer.Option(
            help="int8: kernels quantise activations as they run, faster at a small loss; the default for cpu. For"
            " cuda float16, or bfloat16 for models whose activations leave its range."
        ),
    ] = None,
    kv: Annotated[
        KvType | None,
        typer.Option(
            help="Storage of keys and values: int8 takes a quarter of float32's memory, int4 an eighth, fp8 (cuda) as"
            " much as int8. By default as the target computes."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(SHIPPED)} (int4 alone means {default_recipes()}); {NO_RECIPE} for plain bits; or a TOML"
            " file with bits for patterns of weight names.",
            metavar="NAME|FILE",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="A text like the model's later input: its first 4096 tokens decide which weights matter."),
    ] = None,
    memory: Annotated[
        str, typer.Option(help="Memory limit for tensors in flight: 500MB, 2GB, 2GiB. It does not change the result.")
    ] = "2GB",
    stages: Annotated[
        int | None,
        typer.Option(
            help="Cut the layers into so many artifacts, OUT/stage-1, OUT/stage-2, ..., for as many machines. Only for"
            " models that fit no single one.",
            metavar="N",
            min=2,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted export to OUT, if it exists.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT if it is an artifact.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Download nothing: use of the hub only what its cache has.")
    ] = False,
    weights_file: Annotated[
        str | None,
        typer.Option(
            help="Which of several models in the checkpoint's folder: a file with weights, or an index, by its name.",
            metavar="FILE",
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="Merge this LoRA adapter of peft into the checkpoint: a folder, a hub repo id or a URL; may be given"
            " several times, in order.",
            metavar="ADAPTER",
        ),
    ] = None,
    requantize: Annotated[
        bool,
        typer.Option(
            "--requantize", help="Quantise again the weights that an adapter changes and the checkpoint has as codes."
        ),
    ] = False,
    runtime_adapters: Annotated[
        str | None,
        typer.Option(
            help="Projections that LoRA adapters can change while the model runs: names with commas, as q_proj,v_proj,"
            " or all. See docs/adapters.md.",
            metavar="TARGETS",
        ),
    ] = None,
    prefix: Annotated[
        list[Path] | None,
        typer.Option(
            help="Also bake this system prompt, a text or a .json with messages and tools; may be given several times."
            " See qwonnx bake.",
            metavar="FILE",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Then compare the artifact with the checkpoint, as `qwonnx verify` does, with its exit status.",
        ),
    ] = False,
) -> None:
    """Export a checkpoint to a folder that ONNX Runtime can run.

    Weights are streamed, so memory stays small for models of any size. The export writes to .OUT.incomplete next to OUT
    and renames it at the end. After an interruption or a full disk, --resume continues from there.

    Examples:

        qwonnx export ./Qwen3.5-35B-A3B ./qwen-int4

        qwonnx export Qwen/Qwen3.5-0.8B ./qwen-small --weights int8

        qwonnx export s3://bucket/Qwen3.5-35B-A3B ./qwen-int4 --resume

        qwonnx export ./checkpoint ./exact --weights fp32 --target portable

        qwonnx export ./checkpoint ./checked --verify

        qwonnx export ./checkpoint ./better --recipe best --calibration sample.txt

        qwonnx export ./checkpoint ./long --kv int8

        qwonnx export ./checkpoint ./qwen-cuda --target cuda

        qwonnx export ./Qwen3.5-0.8B ./tuned --adapter ./adapter

        qwonnx export ./Qwen3.5-0.8B ./for-many --runtime-adapters all

        qwonnx export ./checkpoint ./assistant --prefix system.txt --prefix agent.json

        qwonnx export ./Qwen3.5-397B-A17B ./qwen-large --memory 8GB --resume

        qwonnx export ./Qwen3.5-397B-A17B ./qwen-stages --stages 4
    """
    checkpoint = checkpoint_of(checkpoint)
    memory_bytes = parse_bytes(memory, "--memory")
    check_memory(memory_bytes)  # before torch is imported, so that a typing error is reported at once

    from qwonnx.export.pipeline import ExportOptions, export_checkpoint
    from qwonnx.export.stages import export_stages
    from qwonnx.export.weight_files.unfinished import incomplete_folder

    if stages is not None and prefix:
        raise CommandError("--prefix bakes into one artifact, and --stages makes several: leave one of them out")
    if verify:
        _check_can_verify(target, stages)
    prompts = {path: read_prompt(path) for path in prefix or ()}
    if prompts:
        import qwonnx.runtime.engine.engine  # noqa: F401 - it bakes: a missing package is reported before the work
    options = ExportOptions(
        target=target.value,
        activations=activations and activations.value,
        kv=kv and kv.value,
        recipe=Recipe.choose(
            recipe, weights and weights.value, weight_block_size, TARGETS[target.value].default_recipe
        ),
        calibration=None if calibration is None else read_text(calibration),
        overwrite=force,
        resume=resume,
        revision=revision,
        offline=offline,
        weights_file=weights_file,
        memory_bytes=memory_bytes,
        adapters=tuple(adapter or ()),
        requantize=requantize,
        runtime_adapters=tuple(name.strip() for name in (runtime_adapters or "").split(",") if name.strip()),
    )
    console = Console(stderr=True)
    if not resume and incomplete_folder(out).exists():
        print(f"qwonnx: starting over; use --resume to continue from {incomplete_folder(out)}", file=sys.stderr)
    started = time.monotonic()
    skipped: list[SkippedPart] = []
    notes: list[str] = []
    with note_what_is_kept(out), export_progress(console) as shown:
        calls: _Calls = {
            "on_progress": shown.show,
            "on_skipped": skipped.append,
            "on_note": notes.append,
        }
        if stages is None:
            manifests: tuple[Manifest, ...] = (export_checkpoint(checkpoint, out, options, **calls),)
        else:
            manifests = export_stages(checkpoint, out, stages, options, **calls)
    output = Console()
    for manifest in manifests:
        if stages is not None:
            output.print(f"stage {manifest.stage.number} of {stages}", highlight=False)
        output.print(weights_table(manifest.quantization))
    print_notes(output, skipped, notes)
    seconds, in_flight = time.monotonic() - started, bytes_text(shown.peak_bytes)
    size = bytes_text(sum(each.num_bytes for each in manifests))
    summary = f"{out}: {size} in {seconds:.0f} s, with {in_flight} of tensors in flight at most"
    output.print(summary, markup=False, highlight=False, soft_wrap=True)
    if prompts:
        with note_that_the_artifact_is_whole(out):
            bake_prompts(out, prompts, runtime_settings())
    if verify:
        _verify(checkpoint, out, options)


def _check_can_verify(target: TargetName, stages: int | None) -> None:
    if stages is not None:
        raise CommandError("--verify runs a whole model, and --stages makes several artifacts: leave one of them out")
    from qwonnx.export.evaluation.decoder_session import DEVICE_TARGETS

    if target.value in DEVICE_TARGETS:
        raise CommandError(f"--verify runs graphs on the CPU, and the target {target.value} has others: leave it out")


def _verify(checkpoint: str, out: Path, options: ExportOptions) -> None:
    """Verify the new artifact.

    Raises:
        typer.Exit: it is not the checkpoint's model, or the text does not tell.
    """
    from qwonnx.export.verification.verification import VerificationOptions
    from qwonnx.handlers.cli.verify import print_verification, run_verification

    asked = VerificationOptions(
        weights_file=options.weights_file, revision=options.revision, offline=options.offline, adapters=options.adapters
    )
    verified = run_verification(out, checkpoint, asked)
    print_verification(verified)
    if verified.decision.verdict.exit_status:
        raise typer.Exit(verified.decision.verdict.exit_status)
