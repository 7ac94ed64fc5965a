"""Names of tensors that wrappers and other classes saved: undone where the meaning is certain, and else left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.export.checkpoint.saved_names import published_names
from qwonnx.export.errors import TensorFormatError

pytestmark = pytest.mark.fast

FLAT = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.mlp.gate.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.norm.weight",
    "mtp.norm.weight",
    "model.visual.blocks.0.norm1.weight",
)
NESTED = tuple(
    name.replace("model.", "model.language_model.", 1) if name.startswith("model.") and "visual" not in name else name
    for name in FLAT
)


@pytest.mark.parametrize("names", [FLAT, NESTED])
def test_published_names_stay(names: tuple[str, ...]) -> None:
    found = published_names(names)
    assert found.saved == {name: name for name in names}
    assert found.notes == ()


@pytest.mark.parametrize("names", [FLAT, NESTED])
@given(
    prefixes=st.lists(st.sampled_from(["module.", "_orig_mod.", "base_model.model.", "pretrained_model.", "model."]))
)
def test_wrappers_around_all_names_are_undone_in_any_order(names: tuple[str, ...], prefixes: list[str]) -> None:
    around = "".join(prefixes[:5])
    found = published_names([around + name for name in names])
    assert found.saved == {name: around + name for name in names}
    assert bool(found.notes) == bool(around)


@given(places=st.lists(st.integers(0, 6), max_size=4), wrapper=st.sampled_from(["_orig_mod", "_fsdp_wrapped_module"]))
def test_wrappers_within_names_are_undone_wherever_they_are(places: list[int], wrapper: str) -> None:
    saved = {}
    for name in FLAT:
        parts = name.split(".")
        for place in places:
            parts.insert(place % len(parts), wrapper)
        saved[name] = ".".join(parts)
    assert published_names(saved.values()).saved == saved


def test_a_prefix_that_not_all_names_have_stays() -> None:
    names = [*(f"module.{name}" for name in FLAT), "lm_head.bias"]
    assert published_names(names).saved == {name: name for name in names}


def test_names_without_an_embedding_stay() -> None:
    names = ["model.model.norm.weight", "module._orig_mod.x"]
    found = published_names(names)
    assert found.saved == {name: name for name in names}
    assert found.notes == ()


@pytest.mark.parametrize("other", ["_orig_mod.lm_head.weight", "model.lm_head.weight", "model.mtp.norm.weight"])
def test_two_tensors_of_one_name_are_refused(other: str) -> None:
    with pytest.raises(TensorFormatError, match="both stand for"):
        published_names([*FLAT, other])


@given(
    st.lists(st.sampled_from(["model", "module", "layers", "0", "norm", "_orig_mod", "mtp", "embed_tokens", "weight"]))
)
def test_any_names_give_as_many_names_or_an_error(parts: list[str]) -> None:
    names = {".".join(parts[start:]) for start in range(len(parts))}
    try:
        found = published_names(names)
    except TensorFormatError:
        return
    assert sorted(found.saved.values()) == sorted(names)
