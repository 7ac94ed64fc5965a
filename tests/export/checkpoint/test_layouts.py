"""Every layout of docs/checkpoints.md is exported as the model that transformers loads, or refused as quoted there."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import fsspec
import huggingface_hub.constants
import pytest
import torch
from transformers import AutoModelForCausalLM

from qwonnx.export.adapters.adapted_checkpoint import is_adapter
from qwonnx.export.checkpoint.location import locate_checkpoint
from qwonnx.export.checkpoint.resolved_checkpoint import resolve_checkpoint
from qwonnx.export.checkpoint.text_files import check_text_files
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.errors import AccessError, CheckpointError
from qwonnx.export.evaluation.reference_model import load_reference_model, quiet_transformers
from qwonnx.export.modeling.weight_fit import fitting_weights
from qwonnx.export.planning.check import check_checkpoint
from qwonnx.export.planning.source import open_source
from tests.checkpoints import write_tiny
from tests.checkpoints.config_json import HEADS_OF_64
from tests.export.checkpoint import text_layouts, weight_layouts
from tests.export.checkpoint.layout_edits import Layout

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
LAYERS = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
ELSEWHERE = 8  # every so many layouts are checked at a URL, too
WIDE = LAYERS | HEADS_OF_64 | {"linear_value_head_dim": 64, "num_experts": 4}
WIDE |= dict.fromkeys(("hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size"), 256)
REFUSED = (*weight_layouts.REFUSED, *text_layouts.REFUSED)
ACCEPTED = (*weight_layouts.ACCEPTED, *text_layouts.ACCEPTED)


def documented() -> dict[str, str]:
    """The rows of the page's tables of layouts: name -> result."""
    rows = re.findall(r"^\| (.+?) \| ((?:exported|refused).*) \|$", PAGE, re.MULTILINE)
    assert len(dict(rows)) == len(rows), "a layout has two rows"
    return {name: result.replace(r"\|", "|") for name, result in rows}


@dataclass(frozen=True, slots=True)
class Opened:
    """What an export knows before it traces. weights are those of the checkpoint, by our names, before transforms."""

    weights: dict[str, torch.Tensor]
    notes: tuple[str, ...]
    skipped: tuple[str, ...]


def opened(folder: Path, weights_file: str | None = None) -> Opened:
    resolved = resolve_checkpoint(str(folder), None, weights_file)
    source = WeightSource(resolved.tensors, resolved.config)
    shapes = fitting_weights(source, resolved.config)
    texts = check_text_files(resolved.folder, resolved.config.vocab_size)
    weights = {}
    for name, shape in shapes.items():
        reader = source.rows(name, shape).as_stored()
        weights[name] = reader.read(0, reader.num_rows).view(shape)
    skipped = tuple(part.name for part in source.skipped)
    return Opened(weights, (*source.notes, *resolved.tensors.notes, *texts.files.notes), skipped)


def verdict(folder: Path | str, layout: Layout) -> str:
    """The same text, by `qwonnx check`."""
    report = check_checkpoint(str(folder), layout.weights_file)
    if report.refusal is not None:
        return f"refused: `{report.refusal.replace(str(folder), 'FOLDER')}`"
    skipped, notes = report.skipped, report.notes
    parts = ["exported", *(f"skipped: {part.name}" for part in skipped), *(f"note: `{note}`" for note in notes)]
    return "; ".join(parts).replace(str(folder), "FOLDER")


def outcome(folder: Path, layout: Layout) -> str:
    """The row's text of a layout that is written in this folder."""
    try:
        found = opened(folder, layout.weights_file)
    except CheckpointError as error:
        message = str(error)
        assert "\n" not in message
        assert ": " in message
        assert "ownload" not in message, "it may be the only copy of a fine-tune"
        return f"refused: `{message.replace(str(folder), 'FOLDER')}`"
    return "; ".join(
        ["exported", *(f"skipped: {part}" for part in found.skipped), *(f"note: `{note}`" for note in found.notes)]
    ).replace(str(folder), "FOLDER")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound checkpoints of one model, and one of another."""
    folder = tmp_path_factory.mktemp("bases")
    kinds = {
        "plain": {},
        "shards": {"num_shards": 2},
        "experts": {"fused_experts": False},
        "other": {"seed": 1},
        "wide": {},
    }
    for name, options in kinds.items():
        write_tiny(
            folder / name,
            vision=False,
            architecture="Qwen3_5MoeForCausalLM",
            text_overrides=WIDE if name == "wide" else LAYERS,
            **options,  # type: ignore[arg-type]
        )
        # Compiled in no time.
        (folder / name / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    return folder


@pytest.fixture
def made(bases: Path, tmp_path: Path) -> Path:
    """A place beside copies of the sound checkpoints."""
    for name in ("plain", "other"):
        (tmp_path / name).symlink_to(bases / name)
    return tmp_path


def write_layout(bases: Path, place: Path, layout: Layout) -> Path:
    folder = Path(shutil.copytree(bases / layout.base, place / "FOLDER"))
    layout.edit(folder)
    return folder


@pytest.fixture(scope="module")
def expected(bases: Path) -> dict[str, torch.Tensor]:
    return opened(bases / "plain").weights


def test_the_page_has_these_layouts_and_no_others() -> None:
    assert documented().keys() == {layout.name for layout in (*ACCEPTED, *REFUSED)}


@pytest.mark.parametrize("layout", REFUSED, ids=lambda layout: layout.name)
def test_a_refusal_is_the_line_that_the_page_quotes(
    bases: Path, made: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = write_layout(bases, made, layout)
    assert outcome(folder, layout) == documented()[layout.name]
    if is_adapter(str(folder)):  # an export merges it into its base
        try:
            found = verdict(folder, layout)
        except AccessError as error:  # its base is in the hub
            found = f"refused: {error}"
        assert found.startswith("refused: ")
    else:
        assert verdict(folder, layout) == documented()[layout.name]


@pytest.mark.parametrize("layout", ACCEPTED, ids=lambda layout: layout.name)
def test_an_accepted_layout_has_the_notes_that_the_page_quotes(bases: Path, made: Path, layout: Layout) -> None:
    folder = write_layout(bases, made, layout)
    assert outcome(folder, layout) == verdict(folder, layout) == documented()[layout.name]


@pytest.mark.parametrize("layout", [*REFUSED[::ELSEWHERE], *ACCEPTED[::ELSEWHERE]], ids=lambda layout: layout.name)
def test_a_layout_elsewhere_has_the_same_verdict(bases: Path, made: Path, layout: Layout) -> None:
    folder = write_layout(bases, made, layout)
    if is_adapter(str(folder)):  # only a local one stands for its base
        return
    files = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            files.pipe_file(f"/store/FOLDER/{path.relative_to(folder)}", path.read_bytes())
    try:
        found = verdict("memory://store/FOLDER", layout)
    finally:
        files.store.clear()
    is_gguf = layout.weights_file is None and next(folder.glob("*.gguf"), None) is not None
    if is_gguf or str(layout.weights_file).endswith(".gguf"):
        assert "GGUF from a disk of this machine" in found or found == documented()[layout.name]
    else:
        assert found == documented()[layout.name]


@pytest.mark.parametrize(
    "layout", [one for one in weight_layouts.ACCEPTED if one.same_weights], ids=lambda layout: layout.name
)
def test_an_accepted_layout_is_the_same_model(
    bases: Path, made: Path, expected: dict[str, torch.Tensor], layout: Layout
) -> None:
    found = opened(write_layout(bases, made, layout), layout.weights_file).weights
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "layout", [one for one in weight_layouts.ACCEPTED if one.transformers_loads_it], ids=lambda layout: layout.name
)
def test_transformers_loads_the_same_model(
    bases: Path, made: Path, expected: dict[str, torch.Tensor], layout: Layout
) -> None:
    folder = write_layout(bases, made, layout)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in expected.items():
        theirs = found[name.replace("decay_scale", "A_log")]
        if name.endswith("experts.gate_up_proj"):
            theirs = torch.stack(theirs.chunk(2, 1), 2).flatten(1, 2)  # ours alternate
        assert torch.equal(tensor, theirs), name


@pytest.mark.parametrize(
    "layout",
    [one for one in weight_layouts.ACCEPTED if not one.transformers_loads_it and one.same_weights],
    ids=lambda layout: layout.name,
)
def test_the_reference_reads_what_the_export_reads_where_transformers_alone_would_not(
    bases: Path, made: Path, expected: dict[str, torch.Tensor], layout: Layout
) -> None:
    folder = write_layout(bases, made, layout)
    with quiet_transformers():
        model = load_reference_model(
            locate_checkpoint(str(folder), None, layout.weights_file).folder, layout.weights_file
        )
    state = model.state_dict()
    for name in ("embed_tokens.weight", "layers.1.self_attn.q_proj.weight", "layers.0.mlp.experts.down_proj"):
        assert torch.equal(state[f"model.{name}"], expected[name]), name


def test_a_plan_refuses_an_adapter_as_an_export_does(bases: Path, made: Path) -> None:
    layout = next(one for one in REFUSED if one.name == "a LoRA adapter beside the weights")
    with pytest.raises(CheckpointError, match=r"has weights and a LoRA adapter of 'me/base' beside them"):
        open_source(str(write_layout(bases, made, layout)))
