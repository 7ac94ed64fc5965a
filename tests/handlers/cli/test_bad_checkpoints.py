"""`qwonnx export` on checkpoints that it refuses: one line, status 2, no files left. One process per case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import write_tiny
from tests.handlers.cli.commands import error_line, qwonnx


def _edit(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")


def _missing_shard(folder: Path) -> str:
    write_tiny(folder, num_shards=3)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    return shard.name


def _truncated_shard(folder: Path) -> str:
    write_tiny(folder, num_shards=2)
    shard = sorted(folder.glob("*.safetensors"))[0]
    with shard.open("r+b") as stream:
        stream.truncate(shard.stat().st_size - 64)
    return shard.name


def _index_pointing_outside(folder: Path) -> str:
    write_tiny(folder, num_shards=2)
    shard = sorted(folder.glob("*.safetensors"))[0]
    _edit(folder / "model.safetensors.index.json", shard.name, f"../{shard.name}")
    return f"../{shard.name}"


def _unknown_architecture(folder: Path) -> str:
    write_tiny(folder)
    _edit(folder / "config.json", "Qwen3_5MoeForConditionalGeneration", "LlamaForCausalLM")
    return "LlamaForCausalLM"


def _wrong_shape(folder: Path) -> str:
    write_tiny(folder)
    _edit(folder / "config.json", '"moe_intermediate_size": 64', '"moe_intermediate_size": 32')
    return "experts"


def _unused_weight(folder: Path) -> str:
    write_tiny(folder, extra_tensors={"model.language_model.layers.2.adapter.weight": (8, 8)})
    return "layers.2.adapter.weight"


def _missing_weight(folder: Path) -> str:
    write_tiny(folder)
    _edit(folder / "config.json", '"tie_word_embeddings": false', '"tie_word_embeddings": true')
    return "lm_head.weight"


def _unknown_quantization(folder: Path) -> str:
    write_tiny(folder)
    _edit(folder / "config.json", '"text_config"', '"quantization_config": {"quant_method": "hqq"}, "text_config"')
    return "quant_method 'hqq'"


CASES: tuple[Callable[[Path], str], ...] = (
    _missing_shard,
    _truncated_shard,
    _index_pointing_outside,
    _unknown_architecture,
    _wrong_shape,
    _unused_weight,
    _missing_weight,
    _unknown_quantization,
)


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__.strip("_"))
def test_a_checkpoint_that_cannot_be_exported_is_one_line(make: Callable[[Path], str], tmp_path: Path) -> None:
    named = make(tmp_path / "checkpoint")
    line = error_line(qwonnx("export", tmp_path / "checkpoint", tmp_path / "out" / "artifact"))
    assert named in line
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_disk_without_room_is_one_line_that_says_how_much_is_missing(tiny_checkpoint: Path, small_disk: Path) -> None:
    line = error_line(qwonnx("export", tiny_checkpoint, small_disk / "artifact"))
    assert "free" in line
    assert list(small_disk.iterdir()) == []
