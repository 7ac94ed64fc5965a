"""The tables of models and cards in docs/cuda.md: `python -m infra.card_table` writes them anew, from plans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qwonnx.export.checkpoint.config import parse_config
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.planning.artifact_size import CopiedFiles
from qwonnx.export.planning.machines import CARDS, DeploymentTarget
from qwonnx.export.planning.plan import Assumptions, RecipePlan, make_plan
from qwonnx.export.planning.resident_memory import Serving
from qwonnx.export.planning.stored_model import named_recipe
from qwonnx.export.targets.register import choose_target
from qwonnx.runtime.quantities import bytes_text, tokens_text
from tests.checkpoints.published import PUBLISHED

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cuda.md"
_BEGIN, _END = "<!-- cards: begin -->\n", "<!-- cards: end -->\n"
_SERVING = Serving(context=4096, sequences=1, kv=KvType.FLOAT16, chunk_tokens=512, num_threads=1)
# One card of each size of memory.
_SIZES = tuple({card.memory: card for card in CARDS}.values())


def with_tables(page: str) -> str:
    """The page with the tables between its two marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{_table(_memory())}\n{_table(_rates())}{_END}{after}"


def _table(rows: Iterator[tuple[str, ...]]) -> str:
    head, *others = (f"| {' | '.join(row)} |\n" for row in rows)
    return f"{head}{'|---' * (head.count('|') - 1)}|\n{''.join(others)}"


def _memory() -> Iterator[tuple[str, ...]]:
    titles = (
        "recipe, keys and values",
        "weights",
        "at 4k",
        "at 32k",
        *(f"{card.memory // 10**9} GB" for card in _SIZES),
    )
    yield ("model", *titles)
    for size in PUBLISHED:
        for recipe, kv in (("cuda", KvType.FLOAT16), ("smallest", KvType.INT8)):
            plan = _plan(size, recipe, kv)
            needed = (bytes_text(plan.memory_at(context).required) for context in (4096, 32_768))
            weights = bytes_text(plan.model.num_bytes)
            yield size, f"{recipe}, {kv}", weights, *needed, *(_longest(plan, card) for card in _SIZES)


def _rates() -> Iterator[tuple[str, ...]]:
    yield "tokens/s at most", *PUBLISHED
    plans = [_plan(size, "cuda", KvType.FLOAT16) for size in PUBLISHED]
    for card in CARDS:
        yield card.name, *(_rate(plan, card) for plan in plans)


def _plan(size: str, recipe: str, kv: KvType) -> RecipePlan:
    config, serving = parse_config(PUBLISHED[size].config()), replace(_SERVING, kv=kv)
    assumptions = Assumptions(choose_target("cuda", kv=kv), serving, None)
    (planned,) = make_plan(config, [named_recipe(recipe)], assumptions, CopiedFiles.estimated(config)).recipes
    return planned


def _longest(plan: RecipePlan, card: DeploymentTarget) -> str:
    longest = next(one.largest_context for one in plan.deployments if one.target == card)
    return tokens_text(longest) if longest else "-"


def _rate(plan: RecipePlan, card: DeploymentTarget) -> str:
    assert card.bandwidth is not None
    fits = any(one.fits for one in plan.deployments if one.target == card)
    return f"{float(f'{plan.traffic.tokens_per_second(card.bandwidth):.2g}'):g}" if fits else "-"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
