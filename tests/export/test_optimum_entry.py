"""main_export: export_checkpoint under the name and with the conventions of optimum's exporters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwonnx.export import ExportOptions, main_export, pipeline
from qwonnx.export.artifact import Artifact
from qwonnx.export.errors import ExportError
from qwonnx.export.recipe import Recipe


def test_it_makes_what_export_checkpoint_makes(
    tiny_checkpoint: Path, tmp_path: Path, export_tiny: Callable[[ExportOptions], Artifact]
) -> None:
    manifest = main_export(str(tiny_checkpoint), tmp_path / "artifact", task="text-generation", weights="int8")
    assert manifest == export_tiny(ExportOptions(weights="int8")).manifest


def test_everything_it_is_given_arrives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(pipeline, "export_checkpoint", lambda *given, on_progress: seen.append((*given, on_progress)))
    (tmp_path / "recipe.toml").write_text('weights = "int8"\n')
    for recipe in (tmp_path / "recipe.toml", str(tmp_path / "recipe.toml"), Recipe.preset("int8")):
        main_export("a/b", "out", recipe=recipe, revision="main", overwrite=True, on_progress=print)
    options = ExportOptions(recipe=Recipe.preset("int8"), revision="main", overwrite=True)
    assert seen == [("a/b", Path("out"), options, print)] * 3


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"task": "fill-mask"}, "fill-mask"), ({"weight": "int8"}, "'weight'"), ({"target": "tpu"}, "tpu")],
)
def test_what_it_does_not_know_is_named(tiny_checkpoint: Path, tmp_path: Path, wrong: Any, named: str) -> None:
    with pytest.raises(ExportError, match=named):
        main_export(tiny_checkpoint, tmp_path / "out", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_refused_with_those_there_are() -> None:
    with pytest.raises(ExportError) as caught:
        main_export("x", "y", nothing=1)
    assert all(field.name in str(caught.value) for field in dataclasses.fields(ExportOptions) if field.name != "recipe")
