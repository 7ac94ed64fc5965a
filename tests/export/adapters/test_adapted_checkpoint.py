"""Adapters and the bases that they name, and the tensors of adapters that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qwonnx.export.adapters.adapted_checkpoint import resolve_adapted
from qwonnx.export.errors import AdapterError, CheckpointError
from tests.export.adapters.trained import WEIGHTS, State, assert_same, edit_tensors, load, merged, train, write_base

Q = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(load(base), tmp_path_factory.mktemp("adapters") / "tuned", r=2, target_modules=["q_proj"]).folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(saved, tmp_path / "tuned"))


def configure(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(base: Path | str, *adapters: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve_adapted(str(base), None, None, adapters)
    message = str(caught.value)
    assert "\n" not in message
    assert ": " in message, "a message is a cause and a remedy"
    return message


def test_an_adapter_in_the_place_of_a_checkpoint_is_merged_into_the_base_that_it_names(
    base: Path, adapter: Path
) -> None:
    configure(adapter, base_model_name_or_path=str(base))
    adapted = resolve_adapted(str(adapter), None)
    assert (adapted.resolved.folder, adapted.resolved.source.checkpoint) == (base, "base")
    assert [facts.name for facts in adapted.facts] == ["tuned"]
    shutil.copy(base / "config.json", adapter)  # some trainers save it
    assert resolve_adapted(str(adapter), None).facts == adapted.facts


def test_another_adapter_may_follow_the_one_that_names_the_base(base: Path, adapter: Path, saved: Path) -> None:
    configure(adapter, base_model_name_or_path=str(base))
    adapted = resolve_adapted(str(adapter), None, None, [saved])
    assert [facts.sha256 for facts in adapted.facts] == [adapted.facts[0].sha256] * 2


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (None, "does not name its base: give it, qwonnx export BASE OUT --adapter"),
        ("/home/me/models/base", "names the base '/home/me/models/base', which is not here: give it, qwonnx export"),
        ("a text\nof two lines", "which is not here"),
    ],
)
def test_a_base_that_is_not_found_is_asked_for(adapter: Path, named: str | None, message: str) -> None:
    configure(adapter, base_model_name_or_path=named)
    assert message in refused(adapter)


def test_the_notes_say_what_was_merged_and_what_may_be_wrong(base: Path, adapter: Path) -> None:
    configure(adapter, base_model_name_or_path="me/another")
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    assert resolve_adapted(str(base), None, None, [adapter]).notes == (
        "adapter tuned: LoRA of 1 modules, rank 2, scaling 4",
        "adapter tuned: it names the base 'me/another', and 'base' is exported",
        "adapter tuned: its chat_template.jinja differs from the base's, which is used: copy it over the base's if the"
        " adapter was trained with it",
    )


def _without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def _with(name: str, *shape: int) -> Callable[[State], State]:
    return lambda state: {**state, name: torch.ones(shape)}


MODEL = "base_model.model.model"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_with(f"{MODEL}.layers.1.self_attn.x_proj.lora_A.weight", 2, 4), "lacks the other tensors of its module"),
        (_with(f"{MODEL}.layers.1.self_attn.rotary.weight", 2), "changes no weight of the base"),
        (_with(f"{MODEL}.layers.7.input_layernorm.weight", 128), "changes no weight of the base"),
        (_with("base_model.model.unknown", 2), "'base_model.model.unknown' changes no weight of the base"),
        (_with("base_model.model.score.weight", 2, 128), "changes no weight of the base"),
        (
            _with(f"{MODEL}.visual.blocks.0.attn.qkv.lora_A.weight", 2, 4),
            "is of the vision tower",
        ),
        (_with("base_model.model.mtp.fc.lora_A.weight", 2, 4), "is of the draft head, which is not exported"),
        (_with(f"{MODEL}.embed_tokens.token_adapter.trainable_tokens_delta", 2, 4), "trains single rows"),
        (_with(f"{Q}.lora_B.bias", 2), "is a bias, which Qwen 3.5 does not have"),
        (_with(f"{MODEL}.layers.0.linear_attn.conv1d.lora_A.weight", 2, 128, 4), "is of a convolution"),
        (_with(f"{Q}.lora_magnitude_vector", 256), "has lora_magnitude_vector and use_dora is false"),
        (_with(f"{Q}.lora_A.default.weight", 2, 128), "are the same tensor: remove one"),
        (_with(f"{MODEL}.norm.weight", 64), "has the shape [64] where its base and adapter_config.json ask for [128]"),
        (_with(f"{MODEL}.embed_tokens.weight", 1300, 128), "has the shape [1300, 128] where its base"),
        (_without(f"{Q}.lora_B.weight"), "lacks the other tensors of its module: the adapter was not saved whole"),
        (lambda state: {}, "has no tensors"),
        (
            _with(f"{Q}.lora_A.weight", 3, 128),
            "has the shape [3, 128] where its base and",
        ),
        (_with(f"{Q}.lora_A.weight", 0, 128), "is empty, as DeepSpeed ZeRO 3 saves a part of a model"),
        (lambda state: {name: x.to(torch.int32) for name, x in state.items()}, "is stored as I32: save it in BF16"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_tensor_that_is_not_used_is_named(
    base: Path, adapter: Path, edit: Callable[[State], State], message: str
) -> None:
    edit_tensors(adapter, edit)
    assert message in refused(base, adapter)


def test_an_adapter_of_another_model_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = write_base(tmp_path / "other", text_overrides={"hidden_size": 256})
    assert "the base is another model" in refused(other, adapter)
    dense = write_base(tmp_path / "dense", architecture="Qwen3_5ForCausalLM")
    edit_tensors(adapter, _with(f"{MODEL}.layers.0.mlp.experts.down_proj", 6, 128, 48))
    assert "changes no weight of the base" in refused(dense, adapter)


def test_a_magnitude_is_asked_for_where_the_config_says_dora(base: Path, adapter: Path) -> None:
    configure(adapter, use_dora=True)
    assert "has no lora_magnitude_vector and use_dora is true" in refused(base, adapter)


def test_folders_that_hold_no_adapter_in_safetensors_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    assert "is not a folder: give the one that peft's save_pretrained wrote" in refused(base, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "has no adapter_config.json" in refused(base, tmp_path / "empty")
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    assert "has no adapter_model.safetensors and has 'adapter_model.bin': load the adapter with peft" in refused(
        base, adapter
    )
    (adapter / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "is a pointer of Git LFS" in refused(base, adapter)


def test_factors_that_are_not_finite_are_found_when_they_are_read(base: Path, adapter: Path) -> None:
    """The weight stage refuses values that are not finite; reading alone keeps them."""
    edit_tensors(adapter, lambda state: {name: x * float("nan") for name, x in state.items()})
    assert merged(base, adapter)["model.layers.1.self_attn.q_proj.weight"].isnan().all()


def test_an_adapter_without_factors_is_one_of_whole_tensors(base: Path, adapter: Path) -> None:
    norm = torch.randn(128)
    save_file({"base_model.model.model.norm.weight": norm}, adapter / WEIGHTS)
    adapted = resolve_adapted(str(base), None, None, [adapter])
    assert (adapted.facts[0].rank, adapted.facts[0].scaling) == ("none", "none")
    assert_same({"norm": merged(base, adapter)["model.norm.weight"]}, {"norm": norm})


def test_an_error_of_an_adapter_is_one_of_a_checkpoint() -> None:
    assert issubclass(AdapterError, CheckpointError)
