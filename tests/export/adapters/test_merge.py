"""Adapters merged while weights are read, against merge_and_unload of peft in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from qwonnx.export.adapters.adapted_checkpoint import resolve_adapted
from tests.export.adapters.trained import (
    LINEAR,
    PARAMETERS,
    assert_same,
    load,
    merged,
    merged_by_peft,
    train,
    write_base,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def model(base: Path) -> nn.Module:
    return load(base)


@pytest.mark.parametrize("rank", range(1, 17))
def test_all_targets_in_every_rank_are_merged_as_by_peft(
    base: Path, model: nn.Module, tmp_path: Path, rank: int
) -> None:
    fields: dict[str, Any] = {
        "r": rank,
        "lora_alpha": 2 * rank + 1,
        "use_rslora": rank % 2 == 0,
        "target_modules": [*LINEAR, "embed_tokens", "lm_head"],
        "target_parameters": PARAMETERS,
        "modules_to_save": ["input_layernorm"],
    }
    adapter = train(model, tmp_path / "adapter", seed=rank, **fields)
    assert_same(merged(base, adapter.folder), adapter.merged)


@pytest.mark.parametrize("rank", [1, 3, 16])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_dora_is_merged_as_by_peft(base: Path, model: nn.Module, tmp_path: Path, rank: int, use_rslora: bool) -> None:
    targets = [*LINEAR, "embed_tokens", "lm_head"]
    adapter = train(
        model, tmp_path / "adapter", r=rank, lora_alpha=16, use_dora=True, use_rslora=use_rslora, target_modules=targets
    )
    assert_same(merged(base, adapter.folder), adapter.merged, is_dora=True)


_NAMES = st.sampled_from(
    [
        "q_proj",
        "experts.down_proj",
        r"layers.0.*_proj",
        "model.layers.1.self_attn.o_proj",
        r"^model\.layers\.\d+\.mlp.*",
    ]
)


# Without shrinking, which trains thousands of adapters.
@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    rank=st.integers(1, 16),
    alpha=st.integers(1, 64),
    use_rslora=st.booleans(),
    use_dora=st.booleans(),
    ranks=st.dictionaries(_NAMES, st.integers(1, 16), max_size=2),
    alphas=st.dictionaries(_NAMES, st.integers(1, 64), max_size=2),
    targets=st.sets(st.sampled_from([*LINEAR, "embed_tokens", "lm_head"]), min_size=1),
    parameters=st.sets(st.sampled_from(PARAMETERS)),
    whole=st.sets(st.sampled_from(["norm", "input_layernorm", "q_norm", "conv1d", "linear_attn"]), max_size=2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_any_adapter_is_merged_as_by_peft(
    base: Path,
    model: nn.Module,
    tmp_path_factory: pytest.TempPathFactory,
    rank: int,
    alpha: int,
    use_rslora: bool,
    use_dora: bool,
    ranks: dict[str, int],
    alphas: dict[str, int],
    targets: set[str],
    parameters: set[str],
    whole: set[str],
    dtype: torch.dtype,
    seed: int,
) -> None:
    if "linear_attn" in whole:
        whole, targets = {"linear_attn"}, targets - {"in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"}
        targets = targets or {"q_proj"}
    adapter = train(
        model,
        tmp_path_factory.mktemp("adapter"),
        seed=seed,
        r=rank,
        lora_alpha=alpha,
        use_rslora=use_rslora,
        use_dora=use_dora,
        rank_pattern=dict(sorted(ranks.items())),  # peft saves them sorted, and the first that matches decides
        alpha_pattern=dict(sorted(alphas.items())),
        target_modules=sorted(targets),
        target_parameters=[] if use_dora else sorted(parameters),
        modules_to_save=sorted(whole) or None,
        dtype=dtype,
    )
    assert_same(merged(base, adapter.folder), adapter.merged, is_dora=use_dora)


def test_a_rows_values_do_not_depend_on_the_rows_that_are_read_with_it(
    base: Path, model: nn.Module, tmp_path: Path
) -> None:
    plain = train(model, tmp_path / "plain", r=5, target_modules=LINEAR, target_parameters=PARAMETERS)
    dora = train(model, tmp_path / "dora", r=5, use_dora=True, target_modules=[*LINEAR, "embed_tokens"])
    weights = resolve_adapted(str(base), None, None, (plain.folder, dora.folder)).weights
    assert weights is not None
    for name in weights.edits.of_weights:
        opened = weights.open(name, weights.shape(name))
        whole = opened.read(0, opened.num_rows)
        for start, count in ((0, 1), (3, 7), (31, 2), (opened.num_rows - 1, 1), (1, opened.num_rows - 2)):
            if 0 <= start < start + count <= opened.num_rows:
                assert torch.equal(opened.read(start, count), whole[start : start + count]), name
        assert torch.equal(opened.read_part(0, 2, 3), whole[:1, 2:5])


def test_adapters_are_merged_one_after_the_other(base: Path, model: nn.Module, tmp_path: Path) -> None:
    first = train(model, tmp_path / "first", seed=1, r=4, target_modules=LINEAR, target_parameters=PARAMETERS)
    second = train(model, tmp_path / "second", seed=2, r=3, use_dora=True, target_modules=["q_proj", "embed_tokens"])
    third = train(model, tmp_path / "third", seed=3, r=2, target_modules=["k_proj"], modules_to_save=["o_proj"])
    for order in ((first, second, third), (third, second, first)):
        folders = [adapter.folder for adapter in order]
        assert_same(merged(base, *folders), merged_by_peft(model, *folders), is_dora=True)
