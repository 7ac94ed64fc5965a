"""Fingerprints: they have all inputs that decide the bytes, and an error names the difference."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from qwonnx.export.checkpoint.config import load_config
from qwonnx.export.checkpoint.resolved_checkpoint import resolve_checkpoint
from qwonnx.export.quantization.recipe import Recipe, Rule
from qwonnx.export.weight_files.fingerprint import difference, export_fingerprint
from tests.checkpoints import write_tiny

pytestmark = pytest.mark.fast


def _fingerprint(
    checkpoint: Path,
    recipe: Recipe,
    *,
    target: str = "cpu",
    activations: str = "int8",
    kv: str = "float32",
    calibration: str | None = None,
    **config: Any,
) -> dict[str, Any]:
    resolved = resolve_checkpoint(str(checkpoint), None)
    model = dataclasses.replace(load_config(checkpoint), **config)
    return export_fingerprint(
        resolved.tensors,
        resolved.source,
        model,
        recipe,
        {"target": target, "activations": activations, "kv": kv},
        calibration,
    )


def test_the_same_export_has_the_same_fingerprint_and_json_keeps_it(tiny_checkpoint: Path) -> None:
    recipe = Recipe("int4", 64, (Rule("layers.0.*", 8),))
    first, second = (_fingerprint(tiny_checkpoint, recipe) for _ in range(2))
    assert difference(first, second) is None
    assert json.loads(json.dumps(first)) == first


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": Recipe.preset("int8")}, "recipe weights was 'int4' and is now 'int8'"),
        ({"recipe": Recipe.preset("int4", 32)}, "recipe weight_block_size was 128 and is now 32"),
        (
            {"recipe": Recipe("int4", 128, (Rule("*", 8),))},
            "recipe rules was [] and is now [{'pattern': '*', ",
        ),
        ({"target": "portable"}, "target was 'cpu' and is now 'portable'"),
        ({"activations": "float32"}, "activations was 'int8' and is now 'float32'"),
        ({"kv": "int8"}, "kv was 'float32' and is now 'int8'"),
        ({"calibration": "Once upon a time"}, "calibration was missing and is now "),
        ({"rms_norm_eps": 1e-5}, "config rms_norm_eps was 1e-06 and is now 1e-05"),
    ],
)
def test_what_differs_is_named_with_both_values(tiny_checkpoint: Path, change: dict[str, Any], named: str) -> None:
    now = _fingerprint(tiny_checkpoint, **{"recipe": Recipe.preset("int4"), **change})
    what = difference(_fingerprint(tiny_checkpoint, Recipe.preset("int4")), now)
    assert what is not None
    assert what.startswith(named)


def test_a_file_that_was_changed_added_or_cut_is_named(tmp_path: Path) -> None:
    recipe = Recipe.preset("int4")
    begun = _fingerprint(write_tiny(tmp_path / "c", num_shards=2), recipe)
    shard = sorted((tmp_path / "c").glob("*.safetensors"))[1]
    os.utime(shard, ns=(0, 0))
    assert str(difference(begun, _fingerprint(tmp_path / "c", recipe))).startswith(f"files {shard.name} changed was ")
    more = _fingerprint(write_tiny(tmp_path / "more" / "c", num_shards=3), recipe)
    assert str(difference(begun, more)).startswith("files model.safetensors-00001-of-0000")
    assert str(difference(begun, more)).split(" was ")[1].startswith("missing and is now ")


def test_whatever_is_only_on_one_side_is_missing_on_the_other() -> None:
    assert difference({"a": {"b": 1}}, {"a": {}}) == "a was missing and is now {}"
    assert difference({"a": {"b": 1}}, {"a": {"b": 1, "c": "x" * 99}}) == f"a c was missing and is now '{'x' * 56}..."
