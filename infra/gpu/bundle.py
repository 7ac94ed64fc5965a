"""Make the folder that check.py runs on a machine with a GPU, which needs no network.

    python -m infra.gpu.bundle FOLDER [--architecture 90] [--wheels DIR] [--no-packages] [--small]

The folder has check.py, bundle.json and transfer-1, transfer-2, ...: folders of at most 60 MB, which may be copied one
by one. They hold two archives. "packages" is onnxruntime-gpu with the machine code of one architecture, and what the
runtime imports; --no-packages leaves it out, for a machine that has them. "checks" is the runtime, the checks, and what
they need: artifacts, with what the function bodies and the float16 twin make of them. The weights of the large artifact
are not carried: they are made there, from a seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from infra.gpu import packages
from infra.gpu.check import BUNDLE_JSON
from infra.gpu.emulation import emulate
from infra.gpu.geometry import write_geometry
from infra.gpu.on_device.answers import Answers, answer
from infra.gpu.on_device.device import RELU, TOP
from infra.gpu.on_device.geometry import Plan
from infra.gpu.on_device.miniature import LOGITS
from infra.gpu.on_device.steps import Steps
from infra.gpu.operator_cases import write_cases
from infra.gpu.transfers import SplitArchive, Transfers
from infra.miniature import glossary
from infra.miniature.checkpoint import TRAINED
from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.export.targets.cuda import NUM_TOP_LOGITS
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.model.files import load
from qwonnx.runtime.text.chat_prompt import render_chat
from tests.checkpoints import write_tiny
from tests.checkpoints.published import PUBLISHED

ROOT = Path(__file__).resolve().parents[2]
_RECIPE = Recipe.preset("int4", 32)
_LOGITS_PROMPTS = 8
_PACKAGES, _CHECKS = "packages", "checks"  # the archives
_LINEAR, _FULL = "linear_attention", "full_attention"
# Heads of the 35B, which decide what kernels of attention run; a small hidden size keeps the matrices small.
_HEADS = {
    name: PUBLISHED["35B-A3B"].text[name]
    for name in (
        "head_dim",
        "num_attention_heads",
        "num_key_value_heads",
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "rope_parameters",
    )
}
_WIDE_HEADS = {
    **_HEADS,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "layer_types": [_LINEAR, _FULL],
    "max_position_embeddings": 4096,
}
_FOUR_LAYERS = {
    "num_hidden_layers": 4,
    "layer_types": [*[_LINEAR] * 3, _FULL],
    "vocab_size": 24832,
    "max_position_embeddings": 4096,
}
_SMALL = {
    **_FOUR_LAYERS,
    "num_hidden_layers": 2,
    "layer_types": [_LINEAR, _FULL],
    "num_experts": 16,
    "vocab_size": 1024,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--architecture", type=int, default=90, help="90 for compute capability 9.0")
    parser.add_argument("--wheels", type=Path, help="a folder with the packages' wheels; without it, pip fetches them")
    parser.add_argument("--python", default=packages.PYTHON, help="of the machine with the GPU")
    parser.add_argument("--no-packages", action="store_true", help="for a machine that has onnxruntime-gpu")
    parser.add_argument("--small", action="store_true", help="less of everything, for a machine without a GPU")
    options = parser.parse_args(arguments)
    if options.folder.exists():
        print(f"{options.folder} exists: choose another folder", file=sys.stderr)
        return 2
    options.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bundle.", dir=options.folder.parent) as work:
        try:
            made = _trees(Path(work), options)
        except packages.PackageError as error:
            print(error, file=sys.stderr)
            return 2
        options.folder.mkdir()
        transfers = Transfers(options.folder)
        archives = [transfers.add(tree, thoroughly=tree.name == _PACKAGES) for tree in made]
    _write_index(options, archives)
    shutil.copyfile(Path(__file__).with_name("check.py"), options.folder / "check.py")
    print(f"{transfers.count} transfers in {options.folder}: python check.py {options.folder.name}")
    return 0


def _trees(work: Path, options: argparse.Namespace) -> list[Path]:
    """The folders to be packed."""
    trees = []
    if not options.no_packages:
        wheels = options.wheels
        if wheels is None:
            wheels = work / "wheels"
            packages.download(wheels, options.python)
        trees.append(work / _PACKAGES)
        packages.install(sorted(wheels.glob("*.whl")), trees[0] / "site", options.architecture)
    trees.append(work / _CHECKS)
    _write_sources(trees[-1] / "site")
    _write_models(trees[-1], work, small=options.small)
    return trees


def _write_index(options: argparse.Namespace, archives: Sequence[SplitArchive]) -> None:
    brings = not options.no_packages
    document = {
        "python": options.python if brings else None,
        "onnxruntime": f"onnxruntime-gpu {packages.ONNXRUNTIME}" if brings else "onnxruntime-gpu as installed",
        "architecture": options.architecture if brings else None,
        "archives": [asdict(archive) for archive in archives],
    }
    (options.folder / BUNDLE_JSON).write_text(json.dumps(document, indent=1), encoding="utf-8")


def _write_sources(site: Path) -> None:
    """The runtime, and the modules of the checks."""
    sources = {path: Path("qwonnx") / path.relative_to(ROOT) for path in (ROOT / "runtime").rglob("*.py")}
    own = [
        ROOT / "infra" / "__init__.py",
        *(ROOT / "infra" / "gpu" / name for name in ("__init__.py", "seeded_weights.py")),
    ]
    own += (ROOT / "infra" / "gpu" / "on_device").glob("*.py")
    for source, target in (sources | {path: path.relative_to(ROOT) for path in own}).items():
        (site / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, site / target)


def _write_models(tree: Path, work: Path, *, small: bool) -> None:
    (tree / "operators").mkdir(parents=True)
    _write_relu(tree / "operators" / RELU)
    _write_largest(tree / "operators" / TOP)
    wide = write_tiny(work / "wide-heads", text_overrides=_WIDE_HEADS)
    for kv in ("float16",) if small else ("float16", "int8", "int4"):
        exports = _Exports(wide if small else TRAINED, work / f"miniature-{kv}", kv)
        _write_miniature(tree / "miniature" / kv, exports, num_questions=4 if small else 120)
        exports.write_cases(tree / "operators" / f"miniature-{kv}")
    if not small:
        _Exports(wide, work / "wide-heads-float16", "float16").write_cases(tree / "operators" / "wide-heads")
    text, plan = (
        (_SMALL, Plan([64, 128], [1, 2], 8, 4)) if small else (_FOUR_LAYERS, Plan([512, 2048], [1, 8, 32], 512, 32))
    )
    geometry = tree / "geometry" / "35B-A3B"
    write_geometry(geometry, text=text)
    plan.save(geometry)


class _Exports:
    """A checkpoint's artifact for CUDA, the twin of it, and the portable artifact with the function bodies."""

    def __init__(self, checkpoint: Path, folder: Path, kv: str) -> None:
        self._checkpoint, self._kv = checkpoint, kv
        self.cuda, self.twin, self._portable = (folder / name for name in ("cuda", "twin", "portable"))
        export_checkpoint(checkpoint, self.cuda, ExportOptions(target="cuda", recipe=_RECIPE, kv=kv))
        emulate(self.cuda, self.twin)

    def write_cases(self, out: Path) -> None:
        kv = "float32" if self._kv == "float16" else self._kv
        export_checkpoint(self._checkpoint, self._portable, ExportOptions(target="portable", recipe=_RECIPE, kv=kv))
        cuda, portable, twin = map(open_artifact, (self.cuda, self._portable, self.twin))
        write_cases(out, cuda, portable, twin)


def _write_miniature(folder: Path, exports: _Exports, num_questions: int) -> None:
    """The artifact, with the answers and logits of its twin."""
    shutil.copytree(exports.cuda, folder / "artifact")
    model = load(open_artifact(exports.cuda))
    prompts = [
        render_chat(model, list(example.messages[:-1]), [], {"enable_thinking": False}).token_ids
        for example in glossary.held_out(num_questions, 3)
    ]
    Answers(prompts, answer(exports.twin, prompts)).save(folder)
    np.save(folder / LOGITS, _logits(exports.twin, prompts[:_LOGITS_PROMPTS]))


def _logits(artifact: Path, prompts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
    steps = Steps(artifact, len(prompts), max(map(len, prompts)) + 1)
    return np.stack([row.read_all().copy() for prompt in prompts for row in steps.read(prompt)])


def _write_relu(path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [64]) for name in ("x", "y")]
    _write_graph(path, [helper.make_node("Relu", ["x"], ["y"])], values[:1], values[1:])


def _write_largest(path: Path) -> None:
    """The largest logits of rows, as the CUDA graph gives them."""
    vocab_size = PUBLISHED["35B-A3B"].text["vocab_size"]
    sizes = (("logits", TensorProto.FLOAT16, vocab_size), ("values", TensorProto.FLOAT16, NUM_TOP_LOGITS))
    values = [helper.make_tensor_value_info(name, dtype, ["batch", 1, width]) for name, dtype, width in sizes]
    count = numpy_helper.from_array(np.array([NUM_TOP_LOGITS]), "count")
    node = helper.make_node("TopK", ["logits", "count"], ["values", "ids"])
    _write_graph(path, [node], values[:1], values[1:], [count])


def _write_graph(
    path: Path,
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    weights: Sequence[TensorProto] = (),
) -> None:
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    path.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    sys.exit(main())
