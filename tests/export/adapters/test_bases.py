"""Adapters on every form of base: experts in one tensor or many, FP8, GPTQ, tied; and names of every class."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qwonnx.export.adapters.adapted_checkpoint import resolve_adapted
from qwonnx.export.errors import AdapterError
from tests.checkpoints.every_format import FORMATS, write_format
from tests.checkpoints.quantized_formats import write_fp8, write_gptq
from tests.export.adapters.trained import (
    EXPERTS_TEXT,
    LINEAR,
    PARAMETERS,
    State,
    Trained,
    assert_same,
    edit_tensors,
    load,
    merged,
    merged_by_peft,
    train,
    write_base,
)

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
NUM_EXPERTS, INNER = EXPERTS_TEXT["num_experts"], EXPERTS_TEXT["moe_intermediate_size"]
RANK = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def unfused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, with one tensor for each matrix of an expert."""
    return write_base(tmp_path_factory.mktemp("unfused") / "base", fused_experts=False)


@pytest.fixture(scope="module")
def model(base: Path) -> nn.Module:
    return load(base)


@pytest.fixture(scope="module")
def adapter(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(
        model,
        tmp_path_factory.mktemp("adapter"),
        r=RANK,
        target_modules=[*LINEAR, "embed_tokens", "lm_head"],
        target_parameters=PARAMETERS,
        modules_to_save=["input_layernorm", "conv1d"],
    )


@pytest.fixture(scope="module")
def of_experts(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(model, tmp_path_factory.mktemp("experts"), r=RANK, target_modules=[], target_parameters=EXPERTS)


def fused(state: State) -> State:
    """Weights by the model's names, in which experts are in one tensor."""
    made = {name: value for name, value in state.items() if not re.search(r"experts\.\d", name)}
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts."
        if f"{prefix}0.gate_proj.weight" not in state:
            continue
        parts = {
            part: torch.stack([state[f"{prefix}{expert}.{part}_proj.weight"] for expert in range(NUM_EXPERTS)])
            for part in ("gate", "up", "down")
        }
        made[f"{prefix}gate_up_proj"] = torch.cat([parts["gate"], parts["up"]], 1)
        made[f"{prefix}down_proj"] = parts["down"]
    return made


def test_experts_of_a_tensor_each_are_merged_as_those_in_one(unfused: Path, adapter: Trained) -> None:
    assert_same(fused(merged(unfused, adapter.folder)), adapter.merged)


@pytest.mark.parametrize("kind", ["one tensor", "a tensor each"])
def test_experts_that_were_trained_whole_replace_the_bases(
    base: Path, unfused: Path, model: nn.Module, tmp_path: Path, kind: str
) -> None:
    whole = train(model, tmp_path / "adapter", r=2, target_modules=["q_proj"], modules_to_save=["experts"])
    assert_same(fused(merged(base if kind == "one tensor" else unfused, whole.folder)), whole.merged)


def test_an_fp8_base_is_merged_in_float32(unfused: Path, tmp_path: Path) -> None:
    write_fp8(unfused, tmp_path / "fp8", tmp_path / "exact")
    trained = train(
        load(tmp_path / "exact"), tmp_path / "adapter", r=4, target_modules=LINEAR, target_parameters=PARAMETERS
    )
    assert_same(fused(merged(tmp_path / "fp8", trained.folder)), trained.merged)
    dora = train(load(tmp_path / "exact"), tmp_path / "dora", r=4, use_dora=True, target_modules=LINEAR)
    assert_same(fused(merged(tmp_path / "fp8", dora.folder)), dora.merged)


def test_codes_of_gptq_are_lost_where_an_adapter_changes_them_and_where_a_kernel_takes_them_together(
    unfused: Path, tmp_path: Path
) -> None:
    write_gptq(unfused, tmp_path / "gptq", tmp_path / "exact", group_size=16)
    trained = train(
        load(tmp_path / "exact"),
        tmp_path / "adapter",
        r=4,
        target_modules=["q_proj"],
        target_parameters=["layers.1.mlp.experts.down_proj"],
    )
    assert_same(fused(merged(tmp_path / "gptq", trained.folder)), trained.merged)
    weights = resolve_adapted(str(tmp_path / "gptq"), None, None, [trained.folder]).weights
    assert weights is not None
    down = {f"model.layers.1.mlp.experts.{expert}.down_proj.weight" for expert in range(NUM_EXPERTS)}
    assert set(weights.lost_codes) == down

    def of_one_expert(state: State) -> State:
        a, b = (next(value for name, value in state.items() if f"experts.lora_{ab}" in name) for ab in "AB")
        name = "base_model.model.model.layers.1.mlp.experts.2.down_proj"
        one = b.view(b.shape[0], 4, NUM_EXPERTS)[:, :, 2]
        return {f"{name}.lora_A.weight": a.view(NUM_EXPERTS, 4, -1)[2], f"{name}.lora_B.weight": one}

    edit_tensors(trained.folder, of_one_expert)
    one = resolve_adapted(str(tmp_path / "gptq"), None, None, [trained.folder])
    assert one.weights is not None
    assert set(one.weights.lost_codes) == down
    reader = one.source().rows("layers.1.mlp.experts.down_proj", (NUM_EXPERTS, 128, INNER))
    assert reader.stored_codes == {None}
    assert one.source().rows("layers.0.mlp.experts.down_proj", (NUM_EXPERTS, 128, INNER)).codes is not None


@pytest.mark.parametrize("name", ["awq", "w8a16-asymmetric", "nvfp4-modelopt", "nf4-nested"])
def test_a_base_in_another_format_is_merged_in_float32(unfused: Path, tmp_path: Path, name: str) -> None:
    base = write_format(unfused, tmp_path / "base", name, tmp_path / "exact")
    trained = train(
        load(tmp_path / "exact"), tmp_path / "adapter", r=4, target_modules=LINEAR, target_parameters=PARAMETERS
    )
    weights = {n: x for n, x in merged(base, trained.folder).items() if not n.endswith(".input_scale")}
    assert_same(fused(weights), trained.merged)
    adapted = resolve_adapted(str(base), None, None, [trained.folder])
    assert adapted.weights is not None
    if FORMATS[name].keeps_codes:
        assert adapted.weights.lost_codes
        with pytest.raises(AdapterError, match="--requantize"):
            adapted.requantised(allowed=False)
    else:
        assert not adapted.weights.lost_codes


def as_peft_0_18(state: State) -> State:
    """Factors of experts as peft 0.18 shapes them, with the same products."""
    made = dict(state)
    for name, a in state.items():
        if "experts." in name and ".lora_A." in name:
            other = name.replace("lora_A", "lora_B")
            b, rank = state[other], len(a) // NUM_EXPERTS
            by_expert = b.view(len(b), rank, NUM_EXPERTS)
            made[name] = by_expert.permute(2, 1, 0).reshape(NUM_EXPERTS * rank, -1)
            made[other] = a.view(NUM_EXPERTS, rank, -1).permute(2, 1, 0).reshape(-1, rank * NUM_EXPERTS)
    return made


def as_modules(state: State) -> State:
    """Factors of experts as modules of one matrix each, with the same products."""
    made = {name: value for name, value in state.items() if "experts." not in name}
    for name, a in state.items():
        if "experts." not in name or ".lora_A." not in name:
            continue
        b = state[name.replace("lora_A", "lora_B")]
        rank, prefix = len(a) // NUM_EXPERTS, name.partition("experts.")[0] + "experts."
        for expert in range(NUM_EXPERTS):
            own_a = a.view(NUM_EXPERTS, rank, -1)[expert]
            own_b = b.view(len(b), rank, NUM_EXPERTS)[:, :, expert]
            halves = {"gate": own_b[:INNER], "up": own_b[INNER:]} if len(b) == 2 * INNER else {"down": own_b}
            for matrix, rows in halves.items():
                made[f"{prefix}{expert}.{matrix}_proj.lora_A.weight"] = own_a.clone()
                made[f"{prefix}{expert}.{matrix}_proj.lora_B.weight"] = rows
    return made


@pytest.mark.parametrize("edit", [as_peft_0_18, as_modules])
def test_factors_of_experts_in_other_forms_make_the_same_weights(
    base: Path, unfused: Path, of_experts: Trained, tmp_path: Path, edit: Callable[[State], State]
) -> None:
    other = _copied(of_experts.folder, tmp_path / "other")
    edit_tensors(other, edit)
    assert_same(merged(base, other), of_experts.merged)
    assert_same(fused(merged(unfused, other)), of_experts.merged)


def _square(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A base where gate and up of an expert together are as wide as the model."""
    folder = write_base(tmp_path / "square", text_overrides={"moe_intermediate_size": 64})
    return folder, load(folder)


def test_square_factors_are_refused_alone_and_understood_with_others(tmp_path: Path) -> None:
    folder, model = _square(tmp_path)
    both = train(model, tmp_path / "both", r=2, target_modules=[], target_parameters=EXPERTS)
    assert_same(merged(folder, both.folder), both.merged)
    edit_tensors(both.folder, as_peft_0_18)
    assert_same(merged(folder, both.folder), both.merged)
    alone = train(model, tmp_path / "alone", r=2, target_modules=[], target_parameters=EXPERTS[:1])
    with pytest.raises(AdapterError, match=r"do not say whether peft 0\.18 or a later version wrote it"):
        merged(folder, alone.folder)


def test_factors_in_two_orders_are_refused(base: Path, of_experts: Trained, tmp_path: Path) -> None:
    other = _copied(of_experts.folder, tmp_path / "other")
    edit_tensors(other, lambda state: state | {n: x for n, x in as_peft_0_18(state).items() if "layers.0" in n})
    with pytest.raises(AdapterError, match="have the orders of two versions of peft"):
        merged(base, other)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "module.model.", ""])
def test_names_of_other_classes_are_those_of_the_text_model(
    base: Path, adapter: Trained, tmp_path: Path, prefix: str
) -> None:
    other = _copied(adapter.folder, tmp_path / "other")
    edit_tensors(
        other, lambda s: {n.replace("base_model.model.model.", f"base_model.model.{prefix}"): x for n, x in s.items()}
    )
    assert_same(merged(base, other), adapter.merged)


def test_the_state_of_a_model_that_was_not_saved_by_peft_is_understood(
    base: Path, model: nn.Module, tmp_path: Path
) -> None:
    dora = train(
        model,
        tmp_path / "adapter",
        r=2,
        use_dora=True,
        target_modules=["q_proj", "embed_tokens"],
        modules_to_save=["o_proj"],
    )

    def raw(name: str) -> str:
        name = re.sub(r"(lora_[AB])\.weight", r"\1.default.weight", name)
        name = re.sub(r"(lora_embedding_[AB])$", r"\1.default", name)
        name = name.replace("o_proj.weight", "o_proj.modules_to_save.default.weight")
        return re.sub(r"lora_magnitude_vector$", "lora_magnitude_vector.default.weight", name)

    edit_tensors(dora.folder, lambda state: {raw(name): value for name, value in state.items()})
    assert_same(merged(base, dora.folder), dora.merged, is_dora=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["lm_head", "embed_tokens"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ["Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"])
def test_a_tied_head_parts_from_the_embedding_as_in_the_training(
    tmp_path: Path, fields: dict[str, Any], architecture: str
) -> None:
    base = write_base(tmp_path / "base", tie_word_embeddings=True, architecture=architecture)
    model = load(base)
    trained = train(model, tmp_path / "adapter", r=2, **fields)
    expected = merged_by_peft(model, trained.folder)
    found = {name.replace("language_model.", ""): value for name, value in merged(base, trained.folder).items()}
    assert_same(found, expected, is_dora=True)
    adapted = resolve_adapted(str(base), None, None, [trained.folder])
    assert not adapted.resolved.config.tie_word_embeddings
    assert any("which the base ties" in note for note in adapted.notes)


def test_a_head_that_was_kept_tied_stays_tied(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tie_word_embeddings=True, architecture="Qwen3_5ForCausalLM")
    model = load(base)
    fields: dict[str, Any] = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    trained = train(model, tmp_path / "adapter", r=2, target_modules=["q_proj"], **fields)
    edit_tensors(trained.folder, lambda state: {n: x for n, x in state.items() if "lm_head" not in n})
    adapted = resolve_adapted(str(base), None, None, [trained.folder])
    assert adapted.resolved.config.tie_word_embeddings
    found, expected = merged(base, trained.folder), trained.merged
    torch.testing.assert_close(found["model.embed_tokens.weight"], expected["model.embed_tokens.weight"])
    torch.testing.assert_close(expected["lm_head.weight"], expected["model.embed_tokens.weight"])
    assert "lm_head.weight" not in found


def _copied(folder: Path, other: Path) -> Path:
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    return other
