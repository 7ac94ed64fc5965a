"""Which recipe suits this machine: that of the export's defaults if it fits, else the most exact one that does.

Memory is what this process may have, disk what is free where models are kept; `qwonnx plan` has the arithmetic. A model
for a GPU may be pulled on another machine, so its memory is told and limits nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwonnx.export.checkpoint.remote.disk_room import free_bytes
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.planning.fit import Candidate, Fit, Limits, find_fit
from qwonnx.export.planning.plan import Assumptions
from qwonnx.export.planning.resident_memory import Serving
from qwonnx.export.planning.source import PlanSource
from qwonnx.export.planning.stored_model import NamedRecipe, in_every_block_size, named_recipe, named_recipes
from qwonnx.export.quantization.recipe import NO_RECIPE
from qwonnx.export.targets.register import choose_target
from qwonnx.handlers.models.errors import ModelStoreError
from qwonnx.runtime.machine import memory_limit_bytes
from qwonnx.runtime.quantities import bytes_text, tokens_text
from qwonnx.runtime.settings import RuntimeSettings

# Contexts that are tried in turn: a model that has no room for the first is still of use with the last.
CONTEXTS = (32 << 10, 8 << 10, 4 << 10)


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes of memory (None: unknown, and not a limit), and of disk that are free for a model.

    download: bytes that a download takes from the same disk before; `disk` does not have them any more.
    """

    memory: int | None
    disk: int
    download: int = 0

    @property
    def after_download(self) -> str:
        """What to say behind the free disk."""
        return f" after a download of {bytes_text(self.download)}" if self.download else ""


@dataclass(frozen=True, slots=True)
class FittingRecipe:
    """A recipe, the type of keys and values, and why. label is their name within a model's name."""

    recipe: NamedRecipe
    kv: KvType | None  # None: the target's default
    label: str
    why: str


def this_machine(folder: Path) -> Machine:
    """This machine, with the disk of a folder that may not exist yet."""
    memory = memory_limit_bytes()
    if memory is None:  # not Linux
        try:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            memory = None
    return Machine(memory, free_bytes(folder))


def fitting_recipe(source: PlanSource, machine: Machine, target: str) -> FittingRecipe:
    """Choose.

    Raises:
        ModelStoreError: the machine is too small for the model in any recipe.
        RecipeError: no recipe can be applied to the model.
    """
    choice = choose_target(target)
    default = choice.target.default_recipe
    if not choice.target.is_planned:
        named = named_recipe("int4" if default == NO_RECIPE else default)
        return FittingRecipe(
            named, None, named.name, f"{named.name} is the usual recipe; {target} has no plans of memory"
        )
    usual = (named_recipe(default),)
    every = in_every_block_size([named.name for named in named_recipes(default=default)])
    kv_types = choice.target.kv_types_with(choice.activations)
    longest = [min(context, source.config.max_position_embeddings) for context in CONTEXTS]
    tried: Fit | None = None
    # Quality first: a shorter context with the usual recipe comes before a coarser recipe.
    searches: list[tuple[Sequence[NamedRecipe], Sequence[KvType]]] = [(usual, [choice.kv]), (every, kv_types)]
    for recipes, kinds in searches:
        for context in dict.fromkeys(longest):
            tried = _fit(source, recipes, kinds, machine, context, target)
            if (found := tried.chosen) is not None:
                is_usual = found.model.named == usual[0] and found.kv == choice.kv
                counted = replace(machine, memory=None) if choice.target.on_device else machine
                return _chosen(found, choice.kv, context, counted, default if is_usual else None)
    assert tried is not None
    raise ModelStoreError(_too_small(source, tried.nearest, machine))


def _fit(
    source: PlanSource,
    recipes: Sequence[NamedRecipe],
    kv_types: Sequence[KvType],
    machine: Machine,
    context: int,
    target: str,
) -> Fit:
    choice = choose_target(target)
    on_device = choice.target.on_device
    serving = Serving(
        context=context,
        sequences=1,
        kv=choice.kv,
        chunk_tokens=RuntimeSettings().max_num_batched_tokens,
        num_threads=min(os.cpu_count() or 1, 1024),
    )
    limits = Limits(memory=None if on_device else machine.memory, disk=machine.disk, context=context, sequences=1)
    assumptions = Assumptions(choice=choice, serving=replace(serving), bandwidth=None)
    return find_fit(source.config, recipes, kv_types, limits, assumptions, source.copied)


def _chosen(found: Candidate, usual_kv: KvType, context: int, machine: Machine, usual: str | None) -> FittingRecipe:
    named, kv = found.model.named, None if found.kv == usual_kv else found.kv
    block_size = named.recipe.weight_block_size
    label = named.name
    if named != named_recipe(named.name):
        label += f"-{block_size}"
    if kv is not None:
        label += f"-kv-{kv}"
    what = f"{label} is the usual recipe" if usual is not None else f"{label} is the most exact recipe that fits"
    has = "" if machine.memory is None else f" of {bytes_text(machine.memory)}"
    of_device = "a GPU's " if found.model.choice.target.on_device else ""
    return FittingRecipe(
        recipe=named,
        kv=kv,
        label=label,
        why=f"{what}: it takes {bytes_text(found.memory)}{has} of {of_device}memory at {tokens_text(context)} tokens,"
        f" and {bytes_text(found.disk)} of {bytes_text(machine.disk)} on the disk{machine.after_download}",
    )


def _too_small(source: PlanSource, nearest: Candidate, machine: Machine) -> str:
    lacks = []
    if nearest.missing_disk:
        free = f"{bytes_text(max(0, machine.disk))} are free{machine.after_download}"
        lacks.append(f"{bytes_text(nearest.disk)} of disk, where {free}")
    if nearest.missing_memory:
        lacks.append(f"{bytes_text(nearest.memory)} of memory, where {bytes_text(machine.memory or 0)} are there")
    return (
        f"{source.name} does not fit this machine: the smallest recipe, {nearest.model.named.name}, needs"
        f" {' and '.join(lacks)}; --recipe {nearest.model.named.name} exports it nevertheless"
    )
