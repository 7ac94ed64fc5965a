"""A plan, or the candidates that fit, as text and tables for an 80-column terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from qwonnx.export.planning.deployment import Deployment
from qwonnx.export.planning.fit import Candidate, Fit, Limits
from qwonnx.export.planning.plan import CONTEXTS, EXPORT_MEMORY_BYTES, Plan, RecipePlan
from qwonnx.export.targets.register import DEFAULT_TARGET
from qwonnx.handlers.cli.tables import bits_per_weight, count_of, numbers_table
from qwonnx.runtime.quantities import bytes_text, tokens_text

_MOST_CANDIDATES = 8

_Part = Callable[[Any], int]

# The parts of memory that are needed, and those that the system may drop: of a MemoryUse, and of a DeviceUse.
_NEEDED: dict[str, _Part] = {
    "process": lambda use: use.process + use.session,
    "tokenizer": lambda use: use.tokenizer,
    "weights, packed": lambda use: use.packed_weights,
    "weights, mapped": lambda use: use.mapped_weights,
    "keys and values": lambda use: use.kv,
    "other states": lambda use: use.states,
    "huge pages, up to": lambda use: use.page_rounding,
    "work buffers": lambda use: use.work,
}
_DROPPABLE: dict[str, _Part] = {
    "file pages, idle": lambda use: use.read_once_weights + use.embedding,
    "resident": lambda use: use.resident,
}
_NEEDED_ON_DEVICE: dict[str, _Part] = {
    "driver": lambda use: use.driver,
    "weights": lambda use: use.weights,
    "keys and values": lambda use: use.kv,
    "other states": lambda use: use.states,
    "spare row": lambda use: use.spare_row,
    "logits": lambda use: use.logits,
    "work, up to": lambda use: use.work,
    "left free": lambda use: use.unused,
}


def plan_tables(name: str, plan: Plan) -> Iterator[RenderableType]:
    """The texts and tables to print, in order."""
    yield _model_line(name, plan)
    yield from _artifact(plan)
    yield from _contexts(plan)
    yield from _parts(plan)
    yield from _deployments(plan)
    yield Text(f"An export takes about {bytes_text(EXPORT_MEMORY_BYTES)} of memory at most, for a model of any size.")
    for note in plan.notes:
        yield Text(f"Note: {note}.")


def fit_tables(name: str, fit: Fit) -> Iterator[RenderableType]:
    """The candidates that fit, best first, and the command for the best; otherwise the needed changes."""
    limits = fit.limits
    yield Text(f"{name}: {_limits_text(limits)}\n")
    fitting = [candidate for candidate in fit.candidates if candidate.fits]
    if not fitting:
        where = f" {limits.platform.name}" if limits.platform is not None else ""
        yield from _candidates(f"Nothing fits{where}. The nearest candidate:", [fit.nearest], limits)
        yield from _mapped(fit.nearest)
        yield Text("To make it fit:\n" + "\n".join(f"- {line}" for line in remedies(fit)))
        return
    yield from _candidates("Candidates that fit, the most exact first", fitting[:_MOST_CANDIDATES], limits)
    if len(fitting) > _MOST_CANDIDATES:
        yield Text(f"and {len(fitting) - _MOST_CANDIDATES} more, which --json lists")
    best = fitting[0]
    yield from _mapped(best)
    block_size = best.model.named.recipe.weight_block_size
    block = f" --weight-block-size {block_size}" if block_size else ""
    choice = best.model.choice
    target = "" if choice.target.name == DEFAULT_TARGET else f" --target {choice.target.name}"
    activations = "" if choice.activations is choice.target.activations[0] else f" --activations {choice.activations}"
    kv = "" if best.kv is choice.target.kv_types_with(choice.activations)[0] else f" --kv {best.kv}"
    yield Text("Export it with")
    command = f"  qwonnx export {name} OUT{target} {best.model.named.options}{block}{activations}{kv}"
    yield Text(command, no_wrap=True, overflow="ignore")  # to be copied


def _mapped(candidate: Candidate) -> Iterator[RenderableType]:
    """Mapped weights are page cache: neither free nor the process's own."""
    if candidate.mapped:
        yield Text(
            f"Of the memory {bytes_text(candidate.mapped)} are weights mapped from the artifact's files: page cache. "
            "The system may drop it, but every step reads it: with less memory tokens are slow."
        )


def remedies(fit: Fit) -> list[str]:
    """The changes that make the nearest candidate fit."""
    nearest, limits = fit.nearest, fit.limits
    lines = []
    if nearest.missing_disk:
        lines.append(f"disk: {bytes_text(nearest.missing_disk)} more, {bytes_text(nearest.disk)} in all")
    if nearest.missing_memory:
        lines.append(f"memory: {bytes_text(nearest.missing_memory)} more, {bytes_text(nearest.memory)} in all")
        if nearest.largest_context:
            lines.append(f"or context={tokens_text(nearest.largest_context)} instead of {tokens_text(limits.context)}")
        if nearest.largest_sequences:
            lines.append(f"or sequences={nearest.largest_sequences} instead of {limits.sequences}")
    if nearest.missing_disk or not (nearest.largest_context or nearest.largest_sequences):
        lines.append("or a smaller model: these recipes have the fewest bits")
    if limits.platform is not None:
        lines.append(f"or another platform: no instance of {limits.platform.name} has more")
    return lines


def _section(title: str, table: Table, caption: str = "") -> Iterator[RenderableType]:
    yield Text(title, style="bold")
    yield table
    if caption:
        yield Text(caption + "\n", style="dim")


def _model_line(name: str, plan: Plan) -> Text:
    model = plan.model
    experts = f", {model.num_experts_per_tok} of {model.num_experts} experts" if model.num_experts else ""
    return Text(
        f"{name}: {count_of(model.num_parameters)} parameters, {count_of(model.num_active_parameters)} active per token"
        f"{experts}; {model.num_linear_attention_layers} linear and {model.num_full_attention_layers} full attention"
        f" layers; made for {tokens_text(model.max_position_embeddings)} tokens\n"
    )


def _artifact(plan: Plan) -> Iterator[RenderableType]:
    assumptions = plan.assumptions
    table = numbers_table("recipe", "bits/weight", "weights", "other files", "artifact", "read/token")
    if assumptions.bandwidth is not None:
        table.add_column("tokens/s", justify="right")
    for recipe in plan.recipes:
        model, artifact = recipe.model, recipe.model.artifact
        cells = [
            model.named.name,
            bits_per_weight(model.num_bytes, model.num_parameters),
            bytes_text(artifact.weight_bytes),
            ("" if artifact.is_exact else "~") + bytes_text(artifact.num_bytes - artifact.weight_bytes),
            bytes_text(artifact.num_bytes),
            bytes_text(recipe.traffic.bytes_per_token),
        ]
        if assumptions.bandwidth is not None:
            cells.append(_three_digits(recipe.traffic.tokens_per_second(assumptions.bandwidth)))
        table.add_row(*cells)
    caption = f"Read at {_serving(plan)}"
    if assumptions.bandwidth is not None:
        caption += f"; tokens/s is an upper bound for memory of {bytes_text(assumptions.bandwidth)}/s"
    yield from _section(
        f"Artifact for {assumptions.choice.target.name}, and bytes read to decode a token", table, caption + "."
    )


def _contexts(plan: Plan) -> Iterator[RenderableType]:
    serving = plan.assumptions.serving
    contexts = sorted({*CONTEXTS, serving.context})
    table = numbers_table("recipe", *(tokens_text(context) for context in contexts))
    for recipe in plan.recipes:
        needed = (bytes_text(recipe.memory_at(context).required) for context in contexts)
        table.add_row(recipe.model.named.name, *needed)
    where = "Memory of a card" if plan.assumptions.choice.target.on_device else "Memory"
    yield from _section(f"{where} to serve {serving.sequences} at once, {serving.kv} keys and values", table)


def _parts(plan: Plan) -> Iterator[RenderableType]:
    context = plan.assumptions.serving.context
    uses = [recipe.memory_at(context) for recipe in plan.recipes]
    on_device = plan.assumptions.choice.target.on_device
    table = _recipes_table(plan)
    for title, part in (_NEEDED_ON_DEVICE if on_device else _NEEDED).items():
        table.add_row(title, *(bytes_text(part(use)) for use in uses))
    table.add_row("needed", *(bytes_text(use.required) for use in uses), style="bold")
    for title, part in ({} if on_device else _DROPPABLE).items():
        table.add_row(title, *(bytes_text(part(use)) for use in uses))
    yield from _section(f"Parts of it at {tokens_text(context)} tokens", table)


def _deployments(plan: Plan) -> Iterator[RenderableType]:
    def longest(recipe: RecipePlan, one: Deployment) -> str:
        return tokens_text(one.largest_context) if one.largest_context else "-"

    def rate(recipe: RecipePlan, one: Deployment) -> str:
        if one.target.bandwidth is None or not one.fits:
            return "-"
        return _three_digits(recipe.traffic.tokens_per_second(one.target.bandwidth))

    yield from _section("The longest context that fits", _places(plan, longest), "-: does not fit.")
    if plan.assumptions.choice.target.on_device:
        caption = f"The card's bandwidth over bytes read, at {_serving(plan)}: an upper bound."
        yield from _section("Tokens/s at most", _places(plan, rate), caption)


def _places(plan: Plan, cell: Callable[[RecipePlan, Deployment], str]) -> Table:
    """A row for each machine or card, and a column for each recipe."""
    table = _recipes_table(plan)
    for found in zip(*(recipe.deployments for recipe in plan.recipes), strict=True):
        cells = (cell(recipe, one) for recipe, one in zip(plan.recipes, found, strict=True))
        table.add_row(found[0].target.name, *cells)
    return table


def _candidates(title: str, candidates: Sequence[Candidate], limits: Limits) -> Iterator[RenderableType]:
    table = numbers_table("recipe", "block", "KV", "memory", "artifact", "longest", "at once", "error")
    for one in candidates:
        table.add_row(
            one.model.named.name,
            str(one.model.named.recipe.weight_block_size or "-"),
            one.kv,
            bytes_text(one.memory),
            bytes_text(one.disk),
            tokens_text(one.largest_context) if one.largest_context else "-",
            str(one.largest_sequences or "-"),
            f"{one.rounding_error:.1e}" if one.rounding_error else "0",
        )
    yield from _section(
        title,
        table,
        f"Memory at {tokens_text(limits.context)} tokens, {limits.sequences} at once; the longest context and the most"
        " sequences at once that fit; relative squared error of rounding, for comparison only.",
    )


def _limits_text(limits: Limits) -> str:
    sizes = {"memory": limits.memory, "disk": limits.disk}
    parts = [limits.platform.name] if limits.platform is not None else []
    parts += [f"{name} {bytes_text(size)}" for name, size in sizes.items() if size is not None]
    return ", ".join((*parts, f"context {tokens_text(limits.context)}", f"sequences {limits.sequences}"))


def _serving(plan: Plan) -> str:
    serving = plan.assumptions.serving
    return f"{tokens_text(serving.context)} tokens, {serving.sequences} at once"


def _three_digits(value: float) -> str:
    return f"{float(f'{value:.3g}'):g}"


def _recipes_table(plan: Plan) -> Table:
    return numbers_table("", *(recipe.model.named.name for recipe in plan.recipes))
