"""A target that exists nowhere else is registered through the one place, and everything knows it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.checkpoint.config import load_config
from qwonnx.export.errors import ExportError
from qwonnx.export.evaluation.verify import artifact_logits
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.planning.artifact_size import CopiedFiles
from qwonnx.export.planning.plan import Assumptions, make_plan
from qwonnx.export.planning.report import plan_report
from qwonnx.export.planning.resident_memory import Serving
from qwonnx.export.planning.stored_model import named_recipe
from qwonnx.export.targets.register import DEFAULT_TARGET, TARGETS, choose_target
from qwonnx.export.targets.target import Activations, LoadedWeights, LoweringFacts, Target
from qwonnx.export.weight_files.weight_item import WeightItem
from qwonnx.runtime.artifact.folder import open_artifact

if TYPE_CHECKING:
    import onnx_ir as ir

    from qwonnx.export.lowering.graph_weights import GraphWeights


class ToyTarget(Target):
    """Lowers as the portable target does, and has other attributes."""

    name = "toy"
    summary = "a target of this test"
    activations = (Activations.FLOAT32,)
    kv_types = (KvType.INT8, KvType.FLOAT32)
    default_recipe = "smallest"
    minimum_onnxruntime = "1.30"
    providers = ("CPUExecutionProvider",)
    graph_bytes = 1_000_000
    note = "nobody has measured the toy target"

    def lower(self, model: ir.Model, weights: GraphWeights, activations: Activations, facts: LoweringFacts) -> None:
        TARGETS["portable"].lower(model, weights, activations, facts)

    def load(self, items: Sequence[WeightItem], activations: Activations, *, native: bool) -> LoadedWeights:
        return LoadedWeights(mapped=1)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ToyTarget:
    target = ToyTarget()
    monkeypatch.setitem(TARGETS, target.name, target)
    return target


def test_an_export_asks_the_target_alone(toy: ToyTarget, tiny_checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(tiny_checkpoint, tmp_path / "artifact", ExportOptions(target="toy", kv="float32"))
    artifact = open_artifact(tmp_path / "artifact", verify=True)
    manifest, quantization = artifact.manifest, artifact.manifest.quantization
    assert (manifest.target, manifest.minimum_onnxruntime) == ("toy", "1.30")
    smallest = named_recipe("smallest").recipe
    assert quantization.recipe == tuple((rule.pattern, rule.bits) for rule in smallest.rules)
    assert quantization.activations == "float32"
    assert np.isfinite(artifact_logits(artifact, np.arange(8))).all()


def test_a_plan_asks_the_target_alone(toy: ToyTarget, tiny_checkpoint: Path) -> None:
    config = load_config(tiny_checkpoint)
    serving = Serving(4096, 1, KvType.FLOAT32, 512, 2)
    assumptions = Assumptions(choose_target("toy"), serving, None)
    plan = make_plan(config, [named_recipe("int4")], assumptions, CopiedFiles.estimated(config))
    report = plan_report("any", plan)
    assert (report["assumptions"]["target"], report["assumptions"]["activations"]) == ("toy", "float32")
    assert toy.note in plan.notes
    assert plan.recipes[0].model.artifact.file_bytes("decoder.onnx") > 1_000_000
    assert plan.recipes[0].model.loaded.packed == 0


def test_what_a_target_does_not_offer_is_refused(toy: ToyTarget) -> None:
    assert choose_target("toy").kv is KvType.INT8, "the first is the default"
    assert choose_target("toy").activations is Activations.FLOAT32
    with pytest.raises(ExportError, match="the target toy has no kv int4: use one of int8, float32"):
        choose_target("toy", kv="int4")
    for activations in ("float16", "int8"):
        with pytest.raises(ExportError, match=f"the target toy has no activations {activations}: use float32"):
            choose_target("toy", activations)
    with pytest.raises(ExportError, match=f"use one of {DEFAULT_TARGET}, portable, cuda, rtx, toy"):
        choose_target("abacus")


def test_the_command_line_offers_what_is_registered() -> None:
    program = (
        "import sys\n"
        "from qwonnx.export.targets.register import TARGETS\n"
        "TARGETS['toy'] = TARGETS['portable']\n"
        "from qwonnx.handlers.cli.main import main\n"
        "sys.argv[1:] = ['export', '--help']\n"
        "main()\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "toy" in shown
