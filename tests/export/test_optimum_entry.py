"""main_export: export_checkpoint under the name and with the conventions of optimum's exporters."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from qwonnx.export import ExportOptions, main_export, pipeline
from qwonnx.export.errors import ExportError
from qwonnx.export.quantization.recipe import Recipe

pytestmark = pytest.mark.fast


def test_export_checkpoint_is_called_with_everything_that_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipeline, "export_checkpoint", lambda *given, on_progress: (*given, on_progress))
    (tmp_path / "recipe.toml").write_text('weights = "int8"\n')
    options = ExportOptions(recipe=Recipe.preset("int8"), revision="main", overwrite=True)
    for recipe in (tmp_path / "recipe.toml", str(tmp_path / "recipe.toml"), Recipe.preset("int8")):
        made: Any = main_export(
            Path("a/b"), "out", task="auto", recipe=recipe, revision="main", overwrite=True, on_progress=print
        )
        assert made == ("a/b", Path("out"), options, print)


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
