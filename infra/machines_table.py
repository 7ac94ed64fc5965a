"""The tables of docs/machines.md: every published size, what it needs, and the speed to expect on some machines.

    python -m infra.machines_table

The functions of `qwonnx plan` compute everything, from the published configurations; a test compares the page. Speeds
are estimates: bytes that one token reads, at the bandwidth of a memory, times the share of it that was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from qwonnx.export.checkpoint.config import ModelConfig, parse_config
from qwonnx.export.planning.artifact_size import CopiedFiles
from qwonnx.export.planning.machines import BANDWIDTHS, CARDS, PLATFORMS, DeploymentTarget
from qwonnx.export.planning.plan import Assumptions, Plan, RecipePlan, make_plan
from qwonnx.export.planning.resident_memory import Serving
from qwonnx.export.planning.stored_model import named_recipe
from qwonnx.export.targets.register import choose_target
from qwonnx.runtime.quantities import bytes_text
from qwonnx.runtime.settings import RuntimeSettings
from tests.checkpoints.published import PUBLISHED

PAGE = Path(__file__).resolve().parent.parent / "docs" / "machines.md"
_NEEDS, _SPEEDS = "needs", "speeds"

RECIPES = ("smallest", "balanced", "best", "int8")
CONTEXTS = (4 << 10, 32 << 10, 256 << 10)

# A decoding step on two cores, beside a plain read by two threads: 23 to 25 of 25 to 27 GB/s (docs/kernels.md), and a
# plain read by all cores beside the peak of the memory: 80%, assumed, as the STREAM benchmark finds it.
CPU_EFFICIENCY = 0.9 * 0.8
# Assumed: nothing has run on a card.
GPU_EFFICIENCY = 0.5


@dataclass(frozen=True, slots=True)
class Machine:
    """A column of speeds: a machine, the target of its exports, and the share of its bandwidth that decoding gets."""

    place: DeploymentTarget
    bandwidth: int  # bytes a second
    target: str
    efficiency: float


def _card(name: str) -> Machine:
    place = next(card for card in CARDS if card.name.startswith(name))
    assert place.bandwidth is not None
    return Machine(replace(place, name=f"GPU, {place.name}"), place.bandwidth, "cuda", GPU_EFFICIENCY)


MACHINES = (
    Machine(DeploymentTarget("laptop, 32 GB", 32 * 10**9), BANDWIDTHS["ddr5-2ch"], "cpu", CPU_EFFICIENCY),
    Machine(DeploymentTarget("8-core server, 64 GB", 64 * 10**9), BANDWIDTHS["ddr5-8ch"] // 2, "cpu", CPU_EFFICIENCY),
    Machine(replace(PLATFORMS["lambda"], name="function, 10 GB"), BANDWIDTHS["ddr4-2ch"] // 2, "cpu", CPU_EFFICIENCY),
    _card("RTX 4090"),
    _card("A100"),
)


def with_tables(page: str) -> str:
    """The page with both tables between their marks."""
    configs = {name: parse_config(model.config()) for name, model in reversed(list(PUBLISHED.items()))}
    for name, lines in ((_NEEDS, _needs(configs)), (_SPEEDS, _speeds(configs))):
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        table = "".join(f"{line}\n" for line in lines)
        page = f"{before}{begin}{table}{end}{after}"
    return page


def _plan(config: ModelConfig, recipes: tuple[str, ...], target: str, context: int) -> Plan:
    choice = choose_target(target)
    serving = Serving(
        context=context,
        sequences=1,
        kv=choice.kv,
        chunk_tokens=RuntimeSettings().max_num_batched_tokens,
        num_threads=4,
    )
    named = tuple(named_recipe(recipe) for recipe in recipes)
    return make_plan(config, named, Assumptions(choice, serving, None), CopiedFiles.estimated(config))


def _needs(configs: dict[str, ModelConfig]) -> Iterator[str]:
    yield "| Model | Recipe | Disk | Memory at 4k tokens | at 32k | at 256k |"
    yield "|---|---|---|---|---|---|"
    for name, config in configs.items():
        for recipe in _plan(config, RECIPES, "cpu", CONTEXTS[0]).recipes:
            memory = (bytes_text(recipe.memory_at(context).required) for context in CONTEXTS)
            cells = (name, f"`{recipe.model.named.name}`", bytes_text(recipe.model.artifact.num_bytes), *memory)
            yield f"| {' | '.join(cells)} |"


def _speeds(configs: dict[str, ModelConfig]) -> Iterator[str]:
    heads = (f"{each.place.name}, {round(each.bandwidth / 1e9)} GB/s" for each in MACHINES)
    yield f"| Model | Read per token | {' | '.join(heads)} |"
    yield "|---|---|" + "---|" * len(MACHINES)
    for name, config in configs.items():
        recipes = {
            "cpu": _plan(config, ("balanced",), "cpu", CONTEXTS[0]).recipes[0],
            "cuda": _plan(config, ("cuda",), "cuda", CONTEXTS[0]).recipes[0],
        }
        read = bytes_text(recipes["cpu"].traffic.bytes_per_token)
        speeds = (_speed(recipes[machine.target], machine) for machine in MACHINES)
        yield f"| {name} | {read} | {' | '.join(speeds)} |"


def _speed(recipe: RecipePlan, machine: Machine) -> str:
    place = machine.place
    disk = recipe.model.artifact.num_bytes
    if recipe.memory_at(CONTEXTS[0]).required > place.memory or (place.disk is not None and disk > place.disk):
        return "-"
    tokens = machine.efficiency * recipe.traffic.tokens_per_second(machine.bandwidth)
    return f"{tokens:.0f}" if tokens >= 10 else f"{tokens:.1f}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
