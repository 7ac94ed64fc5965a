"""`qwonnx plan`: compute what an export and its serving need, before the export."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.quantization.recipe import NO_RECIPE, SHIPPED, Preset
from qwonnx.export.targets.register import TARGETS, choose_target
from qwonnx.export.targets.target import Activations
from qwonnx.handlers.cli.arguments import checkpoint_of
from qwonnx.handlers.cli.choices import FIRST_TARGET, TargetName
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.progress_lines import step_progress
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.settings import RuntimeSettings

if TYPE_CHECKING:
    from qwonnx.export.planning.plan import Assumptions
    from qwonnx.export.planning.source import PlanSource
    from qwonnx.export.planning.stored_model import NamedRecipe, StoredModel


def plan(
    source: Annotated[
        str,
        typer.Argument(
            help="A config.json, a checkpoint's folder or its URL, or a hub repo id (downloads only its config.json)."
        ),
    ],
    weights: Annotated[str | None, typer.Option(help=f"Plan only for plain bits: {', '.join(Preset)}.")] = None,
    weight_block_size: Annotated[
        int | None, typer.Option(help="Input features that share a scale; by default the recipe's.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help=f"Plan only for one recipe: {', '.join(SHIPPED)}, or a TOML file.", metavar="NAME|FILE"),
    ] = None,
    target: Annotated[TargetName, typer.Option(help="As for `qwonnx export`.")] = FIRST_TARGET,
    activations: Annotated[Activations | None, typer.Option(help="As for `qwonnx export`.")] = None,
    context: Annotated[str, typer.Option(help="Tokens of a sequence, prompt and answer: 4096, 32k, 1M.")] = "32k",
    sequences: Annotated[int, typer.Option(min=1, max=1024, help="Sequences that run at once.")] = 1,
    kv: Annotated[
        str | None,
        typer.Option(help=f"Keys and values: {', '.join(KvType)}; by default the first, with --fit all."),
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a prompt read in one step, as for `qwonnx serve`.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of ONNX Runtime.")] = 4,
    kernels: Annotated[
        Kernels, typer.Option(help="Kernels of the graph's own operators; those of onnxruntime copy weights.")
    ] = Kernels.NATIVE,
    bandwidth: Annotated[
        str | None, typer.Option(help="Memory bandwidth for a roofline: 50GB/s, or a name such as ddr5-2ch, h100.")
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            help="Choose what fits: memory=8GB,disk=9GB or platform=lambda; also context, sequences. Status 1 if none."
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Trace the graph for its exact size: needs torch and seconds per recipe.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="As for `qwonnx export`.")] = False,
    weights_file: Annotated[str | None, typer.Option(help="As for `qwonnx export`.", metavar="FILE")] = None,
) -> None:
    """Compute what an export and its serving need: disk, memory, bytes read per token, and machines that fit.

    The command reads only config.json. Weight files are exact to the byte; memory is that of the process, or of the
    card for --target cuda.

    Examples:

        qwonnx plan Qwen/Qwen3.5-35B-A3B

        qwonnx plan ./config.json --context 256k --sequences 4 --bandwidth 200GB/s

        qwonnx plan Qwen/Qwen3.5-35B-A3B --target cuda --kv int8

        qwonnx plan Qwen/Qwen3.5-9B --fit memory=10GB,disk=10GB,context=32k

        qwonnx plan Qwen/Qwen3.5-9B --fit platform=lambda,context=8k

        qwonnx plan ./checkpoint --weights int4 --exact --json
    """
    from qwonnx.export.checkpoint.remote.addresses import shown_name
    from qwonnx.export.planning.machines import parse_bandwidth
    from qwonnx.export.planning.plan import Assumptions, make_plan, plan_models, store_models
    from qwonnx.export.planning.resident_memory import Serving
    from qwonnx.export.planning.source import open_source
    from qwonnx.runtime.quantities import parse_tokens

    if kv is not None and kv not in list(KvType):
        raise CommandError(f"--kv is {kv[:40]!r}: use one of {', '.join(KvType)}")
    if not TARGETS[target.value].is_planned:
        raise CommandError(f"there are no plans for the target {target.value} yet: plan for another one, such as cpu")
    choice = choose_target(target.value, activations, kv)
    assumptions = Assumptions(
        choice=choice,
        serving=Serving(
            context=parse_tokens(context, "--context"),
            sequences=sequences,
            kv=choice.kv,
            chunk_tokens=max_num_batched_tokens or RuntimeSettings().max_num_batched_tokens,
            num_threads=threads,
            kernels=kernels,
        ),
        bandwidth=None if bandwidth is None else parse_bandwidth(bandwidth),
    )
    source = checkpoint_of(source)
    opened = open_source(source, revision, weights_file, offline=offline)
    if fit is not None:
        checkpoint = Path(source).parent if Path(source).is_file() else shown_name(source)
        kv_types = list(choice.target.kv_types_with(choice.activations)) if kv is None else [choice.kv]
        _fit(opened, str(checkpoint), weights, recipe, fit, kv_types, assumptions, as_json=as_json)
        return
    recipes = _recipes(weights, recipe, weight_block_size, choice.target.default_recipe)
    if exact:
        from qwonnx.export.planning.exact_artifact import formats_at_hand

        models, notes = store_models(opened.config, recipes, assumptions, opened.copied, formats_at_hand(opened))
        planned = plan_models(opened.config, _exact(opened, models, assumptions), assumptions, notes)
    else:
        planned = make_plan(opened.config, recipes, assumptions, opened.copied)
    if as_json:
        from qwonnx.export.planning.report import plan_report

        typer.echo(json.dumps(plan_report(opened.name, planned), indent=1))
        return
    from qwonnx.handlers.cli.plan_tables import plan_tables

    console = Console()
    for part in plan_tables(opened.name, planned):
        console.print(part)


def _recipes(
    weights: str | None, recipe: str | None, weight_block_size: int | None, default: str
) -> tuple[NamedRecipe, ...]:
    from qwonnx.export.planning.stored_model import NamedRecipe, named_recipe, named_recipes
    from qwonnx.export.quantization.recipe import Recipe

    if recipe is not None and not (recipe == NO_RECIPE and weights is not None):
        chosen = Recipe.choose(recipe, weights, weight_block_size)  # refuses a preset that the recipe does not have
        if recipe in SHIPPED:
            return (named_recipe(recipe, weight_block_size),)
        return (NamedRecipe(Path(recipe).stem, chosen, f"--recipe {shlex.quote(recipe)}"),)
    if weights is not None:
        return (named_recipe(weights, weight_block_size),)
    return named_recipes(weight_block_size, default)


def _fit(
    opened: PlanSource,
    checkpoint: str,
    weights: str | None,
    recipe: str | None,
    text: str,
    kv_types: list[KvType],
    assumptions: Assumptions,
    *,
    as_json: bool,
) -> None:
    from qwonnx.export.planning.fit import find_fit, parse_limits
    from qwonnx.export.planning.stored_model import in_every_block_size, named_recipes

    serving, default = assumptions.serving, assumptions.choice.target.default_recipe
    limits = parse_limits(text, serving.context, serving.sequences)
    if limits.platform is not None and assumptions.choice.target.on_device:
        raise CommandError(f"{limits.platform.name} has no GPU that is planned: give memory= of a card instead")
    if recipe is not None:
        recipes = _recipes(weights, recipe, None, default)
    else:
        names = [weights] if weights is not None else [named.name for named in named_recipes(default=default)]
        recipes = in_every_block_size(names)
    found = find_fit(opened.config, recipes, kv_types, limits, assumptions, opened.copied)
    if as_json:
        from qwonnx.export.planning.report import fit_report

        typer.echo(json.dumps(fit_report(opened.name, found, assumptions), indent=1))
    else:
        from qwonnx.handlers.cli.plan_tables import fit_tables

        console = Console()
        for part in fit_tables(checkpoint, found):
            console.print(part)
    if found.chosen is None:
        raise typer.Exit(1)


def _exact(opened: PlanSource, models: list[StoredModel], assumptions: Assumptions) -> list[StoredModel]:
    from qwonnx.export.planning.exact_artifact import source_facts, with_exact_artifact

    facts = source_facts(opened)
    with step_progress("tracing the model", Console(stderr=True)):
        return [
            with_exact_artifact(
                opened.config,
                model,
                opened.copied,
                facts,
                assumptions.choice,
            )
            for model in models
        ]
