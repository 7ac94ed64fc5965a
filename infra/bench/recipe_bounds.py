"""How far right artifacts of each recipe are from their checkpoint, part by part: the numbers of docs/verify.md.

    python -m infra.bench.recipe_bounds CHECKPOINT [--recipes balanced best ...] [--text FILE]

Exports CHECKPOINT by each recipe with int8 activations, verifies the artifact, and removes it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.quantization.recipe import SHIPPED, Preset, Recipe
from qwonnx.export.verification.verification import VerificationOptions, verify_artifact

PRESETS = (Preset.INT8.value, Preset.INT4.value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--recipes", nargs="+", choices=(*SHIPPED, *PRESETS), default=(*PRESETS, *SHIPPED))
    parser.add_argument("--text", type=Path)
    options = parser.parse_args(arguments)
    text = None if options.text is None else options.text.read_text(encoding="utf-8")
    rows = []
    for name in options.recipes:
        rows.append({"recipe": name, **measure(options.checkpoint, name, text)})
        print(rows[-1], flush=True)
    print(json.dumps({"benchmark": "recipe_bounds", "checkpoint": options.checkpoint.name, "rows": rows}))


def measure(checkpoint: Path, name: str, text: str | None) -> dict[str, Any]:
    """The largest relative errors of the parts, the KL divergence and the verdict of one recipe."""
    recipe = Recipe.named(name) if name in SHIPPED else Recipe.preset(name)
    with tempfile.TemporaryDirectory(prefix="recipe-bounds-") as scratch:
        out = Path(scratch) / "artifact"
        export_checkpoint(checkpoint, out, ExportOptions(recipe=recipe, activations="int8"))
        found = verify_artifact(out, checkpoint, VerificationOptions(text=text))
    assert found.evidence is not None, found.decision
    errors = {part.name: part.error for part in found.evidence.parts}
    ends = {end: round(errors.pop(end), 5) for end in ("embedding", "head")}
    return {
        "layer": round(max(errors.values()), 5),
        **ends,
        "kl": round(found.evidence.mean_kl, 5),
        "tokens": len(found.evidence.predictions.kl),
        "verdict": found.decision.verdict.value,
    }


if __name__ == "__main__":
    main()
