"""Our weights from a checkpoint's tensors: names, layouts, arithmetic in float32, and refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.config import ModelConfig, load_config
from qwonnx.export.checkpoint.formats.gptq_config import GptqFormat
from qwonnx.export.checkpoint.weight_source import SkippedPart, WeightSource
from qwonnx.export.errors import CheckpointError, MissingTensorError, TensorFormatError, UnusedTensorError
from tests.checkpoints.quantized_formats import Stored, gptq_matrix, write_tensors

pytestmark = pytest.mark.fast

NESTED = "model.language_model."
GATE_UP, DOWN = "layers.0.mlp.experts.gate_up_proj", "layers.0.mlp.experts.down_proj"

Open = Callable[..., WeightSource]


@pytest.fixture
def config(tiny_checkpoint: Path) -> ModelConfig:
    return load_config(tiny_checkpoint)


@pytest.fixture
def open_source(tmp_path: Path, config: ModelConfig) -> Open:
    """A source over a checkpoint of only these tensors and an embedding, which is already used."""

    def make(tensors: dict[str, torch.Tensor], *, prefix: str = NESTED, tied: bool = False) -> WeightSource:
        embedding = {f"{prefix}embed_tokens.weight": torch.arange(12.0).view(3, 4)}
        save_file(embedding | tensors, tmp_path / "model.safetensors")
        tied_config = dataclasses.replace(config, tie_word_embeddings=tied)
        source = WeightSource(Checkpoint.open(tmp_path), tied_config)
        source.rows("embed_tokens.weight", (3, 4))
        return source

    return make


def _values(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def _read(source: WeightSource, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    reader = source.rows(name, shape)
    return reader.read(0, reader.num_rows).view(shape)


@pytest.mark.parametrize("prefix", [NESTED, "model."])
def test_both_prefixes_are_read_and_the_head_has_none(open_source: Open, prefix: str) -> None:
    projection, head = _values(6, 4), _values(3, 4)
    source = open_source(
        {f"{prefix}layers.0.self_attn.q_proj.weight": projection, "lm_head.weight": head}, prefix=prefix
    )
    assert torch.equal(_read(source, "layers.0.self_attn.q_proj.weight", (6, 4)), projection.float())
    assert torch.equal(_read(source, "lm_head.weight", (3, 4)), head.float())
    source.check_all_used()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_values_become_float32_exactly(open_source: Open, dtype: torch.dtype) -> None:
    extremes = torch.tensor([[torch.finfo(dtype).max, torch.finfo(dtype).tiny, -0.0, 1 / 3]]).to(dtype)
    source = open_source({NESTED + "layers.0.mlp.up_proj.weight": extremes})
    values = _read(source, "layers.0.mlp.up_proj.weight", (1, 4))
    assert values.dtype is torch.float32
    assert torch.equal(values.to(dtype), extremes)
    assert values.double().equal(extremes.double())


@pytest.mark.parametrize(
    "name",
    [
        "norm.weight",
        "layers.11.input_layernorm.weight",
        "layers.11.post_attention_layernorm.weight",
        "layers.11.self_attn.q_norm.weight",
        "layers.11.self_attn.k_norm.weight",
    ],
)
def test_norms_get_their_one_in_float32(open_source: Open, name: str) -> None:
    stored = _values(64)
    source = open_source({NESTED + name: stored})
    assert torch.equal(_read(source, name, (64,)), 1.0 + stored.float())


def test_the_gated_norm_is_taken_as_it_is(open_source: Open) -> None:
    stored = _values(64, dtype=torch.float32)
    source = open_source({NESTED + "layers.0.linear_attn.norm.weight": stored})
    assert torch.equal(_read(source, "layers.0.linear_attn.norm.weight", (64,)), stored)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_decay_scale_is_minus_the_exponential_of_a_log_in_float32(open_source: Open, dtype: torch.dtype) -> None:
    stored = _values(32, dtype=dtype)
    source = open_source({NESTED + "layers.0.linear_attn.A_log": stored})
    expected = -stored.double().exp()
    actual = _read(source, "layers.0.linear_attn.decay_scale", (32,))
    torch.testing.assert_close(actual.double(), expected, rtol=2e-7, atol=0)
    source.check_all_used()


def _experts(fused: bool, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> dict[str, torch.Tensor]:
    if fused:
        return {NESTED + GATE_UP: torch.cat([gate, up], 1), NESTED + DOWN: down}
    prefix = f"{NESTED}layers.0.mlp.experts."
    parts = {"gate_proj": gate, "up_proj": up, "down_proj": down}
    return {
        f"{prefix}{expert}.{part}.weight": tensor[expert].clone()
        for part, tensor in parts.items()
        for expert in range(len(tensor))
    }


@pytest.mark.parametrize("fused", [True, False])
def test_gate_and_up_rows_alternate_under_both_namings(open_source: Open, fused: bool) -> None:
    gate, up, down = _values(3, 5, 8), _values(3, 5, 8) + 1, _values(3, 8, 5)
    source = open_source(_experts(fused, gate, up, down))
    alternating = torch.stack([gate, up], 2).flatten(1, 2)
    assert torch.equal(_read(source, GATE_UP, (3, 10, 8)), alternating.float())
    assert torch.equal(_read(source, DOWN, (3, 8, 5)), down.float())
    source.check_all_used()


@pytest.mark.parametrize("fused", [True, False])
def test_any_slice_of_rows_is_the_same_as_those_rows_of_the_whole(open_source: Open, fused: bool) -> None:
    gate, up, down = _values(3, 5, 8), _values(3, 5, 8) + 1, _values(3, 8, 5)
    source = open_source(_experts(fused, gate, up, down))
    for name, shape in ((GATE_UP, (3, 10, 8)), (DOWN, (3, 8, 5))):
        reader = source.rows(name, shape)
        assert (reader.num_rows, reader.num_columns) == (shape[0] * shape[1], shape[2])
        whole = reader.read(0, reader.num_rows)
        for start in range(reader.num_rows):
            for count in (0, 1, 2, 3, 11, reader.num_rows - start):
                if start + count <= reader.num_rows:
                    assert torch.equal(reader.read(start, count), whole[start : start + count])


def test_a_reader_knows_how_many_bytes_it_will_read(open_source: Open) -> None:
    source = open_source(_experts(True, _values(3, 5, 8), _values(3, 5, 8), _values(3, 8, 5)))
    assert source.rows(GATE_UP, (3, 10, 8)).num_source_bytes == 3 * 10 * 8 * 2


def test_codes_are_read_by_whole_experts_where_those_fit_and_else_in_equal_slices(
    tmp_path: Path, config: ModelConfig
) -> None:
    stored: dict[str, Stored] = {}
    for expert in range(4):
        for part, shape in (("gate", (16, 64)), ("up", (16, 64)), ("down", (64, 32))):
            module = f"{NESTED}layers.0.mlp.experts.{expert}.{part}_proj"
            stored |= gptq_matrix(module, _values(*shape).float().numpy(), group_size=32).stored
    write_tensors(tmp_path / "model.safetensors", stored)
    quantization = GptqFormat((4,), (32,), symmetric=True, may_permute=False)
    source = WeightSource(Checkpoint.open(tmp_path), dataclasses.replace(config, quantization=quantization))
    reader = source.rows(GATE_UP, (4, 32, 64))
    assert reader.num_source_bytes == sum(len(stored[name].content) for name in stored if "down_proj" not in name)
    # An expert has 32 rows of 64 codes, and eight times as many values are read at once as of floats.
    assert [reader.rows_at_once(values) for values in (1 << 20, 512, 256, 255, 64, 1)] == [1 << 17, 64, 32, 16, 8, 1]
    whole, codes = reader.read(0, 128), reader.read_codes(0, 128, 32)
    for start, count in ((0, 128), (32, 32), (31, 3), (5, 70)):
        assert torch.equal(reader.read(start, count), whole[start : start + count])
        assert torch.equal(reader.read_codes(start, count, 32).codes, codes.codes[start : start + count])
        assert torch.equal(reader.read_codes(start, count, 32).scales, codes.scales[start : start + count])


@pytest.mark.parametrize(
    "name",
    [
        "experts.gate_up_proj",
        "experts.0.gate_proj.weight",
        "experts.0.gate_proj.weight_scale_inv",
        "experts.7.down_proj.qweight",
    ],
)
def test_a_draft_heads_experts_are_skipped_in_every_form(open_source: Open, name: str) -> None:
    source = open_source({f"mtp.layers.0.mlp.{name}": _values(2, 2)})
    source.check_all_used()
    assert source.skipped == (SkippedPart("multi-token-prediction head", 1, 8),)


def test_draft_head_and_vision_tower_are_listed_as_skipped(open_source: Open) -> None:
    source = open_source({"mtp.fc.weight": _values(2, 2), "model.visual.pos_embed.weight": _values(2, 2)})
    source.check_all_used()
    assert source.skipped == (
        SkippedPart("multi-token-prediction head", 1, 8),
        SkippedPart("vision tower", 1, 8),
    )


def test_a_tied_head_is_the_embedding(open_source: Open) -> None:
    source = open_source({}, tied=True)
    assert torch.equal(_read(source, "lm_head.weight", (3, 4)), torch.arange(12.0).view(3, 4))
    source.check_all_used()


def test_a_stored_copy_of_a_tied_head_is_skipped_and_one_that_differs_refused(open_source: Open) -> None:
    copied = torch.arange(12.0).view(3, 4)
    source = open_source({"lm_head.weight": copied.bfloat16()}, tied=True)
    source.check_all_used()
    assert source.skipped == (SkippedPart("copy of the tied embedding", 1, 24),)
    source = open_source({"lm_head.weight": copied + 1}, tied=True)
    with pytest.raises(TensorFormatError, match=r"lm_head\.weight differs from model\.language_model\.embed_tokens"):
        source.check_all_used()


def _refusal(kind: type[CheckpointError], source: WeightSource, name: str, shape: tuple[int, ...]) -> str:
    with pytest.raises(kind) as caught:
        source.rows(name, shape)
    message = str(caught.value)
    assert "\n" not in message
    assert ": " in message
    assert "download" not in message
    return message


def test_a_missing_tensor_is_named_with_the_shape_it_should_have(open_source: Open) -> None:
    source = open_source({})
    message = _refusal(MissingTensorError, source, "layers.0.self_attn.q_proj.weight", (6, 4))
    assert f"{NESTED}layers.0.self_attn.q_proj.weight of shape [6, 4]" in message
    message = _refusal(MissingTensorError, source, "lm_head.weight", (3, 4))
    assert "no lm_head.weight of shape [3, 4]" in message
    message = _refusal(MissingTensorError, source, "layers.0.linear_attn.decay_scale", (4,))
    assert "linear_attn.A_log" in message


@pytest.mark.parametrize("missing", ["0.gate_proj", "2.up_proj", "1.down_proj"])
def test_one_missing_expert_is_named(open_source: Open, missing: str) -> None:
    tensors = _experts(False, _values(3, 5, 8), _values(3, 5, 8), _values(3, 8, 5))
    del tensors[f"{NESTED}layers.0.mlp.experts.{missing}.weight"]
    source = open_source(tensors)
    name, shape = (DOWN, (3, 8, 5)) if "down" in missing else (GATE_UP, (3, 10, 8))
    assert f"experts.{missing}.weight of shape" in _refusal(MissingTensorError, source, name, shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_weight_is_bfloat16_if_all_its_values_are_stored_so(open_source: Open, dtype: torch.dtype) -> None:
    router, norm, decay = "layers.0.mlp.gate.weight", "layers.0.input_layernorm.weight", "layers.0.linear_attn."
    experts = _experts(False, _values(2, 5, 8), _values(2, 5, 8, dtype=dtype), _values(2, 8, 5))
    source = open_source(
        {
            NESTED + router: _values(6, 4, dtype=dtype),
            NESTED + norm: _values(4, dtype=dtype),
            f"{NESTED}{decay}A_log": _values(4, dtype=dtype),
            **experts,
        }
    )
    assert source.is_bfloat16(router, (6, 4)) == (dtype is torch.bfloat16)
    assert source.is_bfloat16(GATE_UP, (2, 10, 8)) == (dtype is torch.bfloat16)
    assert source.is_bfloat16(DOWN, (2, 8, 5))
    assert not source.is_bfloat16(norm, (4,))  # its 1 is added
    assert not source.is_bfloat16(f"{decay}decay_scale", (4,))


def test_a_tensor_of_another_shape_is_named_with_both(open_source: Open) -> None:
    source = open_source({f"{NESTED}layers.0.linear_attn.conv1d.weight": _values(8, 4)})
    message = _refusal(TensorFormatError, source, "layers.0.linear_attn.conv1d.weight", (8, 1, 4))
    assert f"{NESTED}layers.0.linear_attn.conv1d.weight has shape [8, 4]" in message
    assert "[8, 1, 4]" in message


def test_a_type_that_cannot_be_read_is_named(open_source: Open) -> None:
    name = "layers.0.self_attn.q_proj.weight"
    source = open_source({NESTED + name: _values(6, 4).to(torch.float8_e4m3fn)})
    assert "is stored as F8_E4M3" in _refusal(TensorFormatError, source, name, (6, 4))


def test_tensors_that_nothing_uses_are_counted_and_named(open_source: Open) -> None:
    names = [f"{NESTED}layers.{index}.mystery" for index in range(5)]
    source = open_source({name: _values(1) for name in names})
    with pytest.raises(UnusedTensorError) as caught:
        source.check_all_used()
    message = str(caught.value)
    assert "\n" not in message
    assert "the model does not use 5 of the checkpoint's tensors" in message
    assert all(name in message for name in names[:3])


def test_an_expert_too_many_is_unused(open_source: Open) -> None:
    source = open_source(_experts(False, _values(3, 5, 8), _values(3, 5, 8), _values(3, 8, 5)))
    source.rows(GATE_UP, (2, 10, 8))
    source.rows(DOWN, (2, 8, 5))
    with pytest.raises(UnusedTensorError, match=r"experts\.2\.down_proj\.weight"):
        source.check_all_used()
