"""What attention takes, in one node beside its function: norm, projections, and norms and rotations of heads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qwonnx.runtime.native.library import NativeLibrary
from tests.runtime.native.fused import FusedNode, assert_close, in_blocks, tolerance_of_codes
from tests.runtime.native.reference import random_weight

pytestmark = pytest.mark.fast


@dataclass(frozen=True, slots=True)
class Case:
    """Sizes of a layer."""

    batch: int = 1
    tokens: int = 1
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    rotary_dim: int = 16
    bits: tuple[int, int, int] = (4, 4, 4)  # of q, k and v
    blocks: tuple[int, int, int] = (32, 32, 32)
    zero_points: bool = False
    level: int = 1


CASES = {
    "one token": Case(),
    "rows of one token": Case(batch=5, heads=3, kv_heads=1),
    "wide heads": Case(hidden=256, heads=2, head_dim=256, rotary_dim=64),
    "heads that are rotated wholly": Case(tokens=3, head_dim=40, rotary_dim=40),
    "heads of odd sizes": Case(tokens=2, head_dim=22, rotary_dim=10),
    "rows of chunks": Case(batch=2, tokens=9, hidden=128),
    "chunks of more than a tile": Case(tokens=150, heads=2, head_dim=80, rotary_dim=20),
    "k of other blocks": Case(tokens=3, blocks=(32, 16, 16)),
    "three kinds of bits": Case(tokens=2, bits=(4, 2, 8)),
    "v of other bits": Case(bits=(4, 4, 8)),
    "zero points": Case(batch=2, tokens=2, zero_points=True),
}


def node(case: Case, seed: int = 0) -> FusedNode:
    random = np.random.default_rng(seed)
    inputs = {"h": random.standard_normal((case.batch, case.tokens, case.hidden)).astype(np.float32)}
    angles = random.uniform(-4, 4, (case.batch, case.tokens, case.rotary_dim // 2))
    inputs |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    rows = (2 * case.heads * case.head_dim, case.kv_heads * case.head_dim, case.kv_heads * case.head_dim)
    constants: dict[str, NDArray[Any]] = {"norm": random.uniform(0.5, 1.5, case.hidden).astype(np.float32)}
    for index, name in enumerate("qkv"):
        shape = (rows[index], case.hidden)
        weight = random_weight(random, shape, case.bits[index], case.blocks[index], case.zero_points)
        constants |= in_blocks(weight).tensors(name)
    for name in ("q_norm", "k_norm"):
        constants[name] = random.uniform(0.5, 1.5, case.head_dim).astype(np.float32)
    attributes: dict[str, Any] = {
        "norm_epsilon": 1e-6,
        "q_norm_epsilon": 1e-5,
        "k_norm_epsilon": 1e-4,
        "accuracy_level": case.level,
        "hidden": case.hidden,
        "num_heads": case.heads,
        "num_kv_heads": case.kv_heads,
        "rotary_dim": case.rotary_dim,
        "query_shape": [0, 0, case.heads, -1],
        "key_shape": [0, 0, case.kv_heads, -1],
    }
    for index, name in enumerate("qkv"):
        attributes |= {f"{name}_rows": rows[index], f"{name}_bits": case.bits[index]}
        attributes[f"{name}_block_size"] = case.blocks[index]
    op_type = "AffineAttentionInputs" if case.zero_points else "QuantizedAttentionInputs"
    return FusedNode(op_type, inputs, constants, [*inputs, *constants], attributes, num_outputs=4)


@pytest.mark.parametrize("name", CASES)
def test_the_inputs_are_those_of_the_function(library: NativeLibrary, instructions: str, name: str) -> None:
    for seed in range(2):
        made = node(CASES[name], seed)
        for ours, theirs in zip(made.run(library), made.run(None), strict=True):
            assert_close(ours, theirs, 2e-5)


@pytest.mark.parametrize("name", CASES)
def test_quantised_activations_are_those_of_the_function(library: NativeLibrary, instructions: str, name: str) -> None:
    """Both quantise by block, but a value between two codes may go either way."""
    made = node(replace(CASES[name], level=4))
    for ours, theirs in zip(made.run(library), made.run(None), strict=True):
        assert_close(ours, theirs, tolerance_of_codes(5e-3))


def test_random_sizes_give_what_the_function_gives(library: NativeLibrary, instructions: str) -> None:
    random = np.random.default_rng(7)
    for seed in range(12):
        kv_heads, head_dim = int(random.integers(1, 4)), 2 * int(random.integers(4, 50))
        blocks = tuple(int(2 ** random.integers(4, 7)) for _ in range(3))
        case = Case(
            batch=int(random.integers(1, 4)),
            tokens=int(random.choice([1, 1, 2, 5, 20])),
            hidden=max(blocks) * int(random.integers(1, 4)),
            heads=kv_heads * int(random.integers(1, 4)),
            kv_heads=kv_heads,
            head_dim=head_dim,
            rotary_dim=2 * int(random.integers(1, head_dim // 2 + 1)),
            blocks=(blocks[0], blocks[1], blocks[2]),
            zero_points=bool(random.integers(2)),
        )
        made = node(case, seed)
        for ours, theirs in zip(made.run(library), made.run(None), strict=True):
            assert_close(ours, theirs, 2e-5)


def test_rows_of_a_batch_do_not_change_each_other(library: NativeLibrary, instructions: str) -> None:
    """Each row is what it is alone, up to the order of sums, which depends on the number of tokens."""
    made = node(Case(batch=4, tokens=3))
    together = made.run(library)
    for row in range(4):
        alone = replace(made, inputs={name: value[row : row + 1] for name, value in made.inputs.items()})
        for ours, theirs in zip(alone.run(library), together, strict=True):
            assert_close(ours, theirs[row : row + 1], 2e-6)


@pytest.mark.parametrize("case", [Case(batch=0), Case(tokens=0)])
def test_no_rows_and_no_tokens_give_no_output(library: NativeLibrary, instructions: str, case: Case) -> None:
    shapes = [output.shape for output in node(case).run(library)]
    assert shapes == [(case.batch, case.tokens, width) for width in (128, 64, 64, 128)]


def test_values_that_are_not_finite_do_not_disappear(library: NativeLibrary, instructions: str) -> None:
    made = node(Case(tokens=3, level=4))
    made.inputs["h"][0, 1, 5] = np.nan
    for output in made.run(library):
        assert not np.isfinite(output[0, 1]).any()
        assert np.isfinite(output[0, [0, 2]]).all()


WEIGHTS = ["norm", "q.codes", "q.scales", "k.codes", "v.scales", "q_norm", "k_norm"]


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("axis", [0, -1])
def test_a_weight_of_another_size_is_refused_when_the_session_is_created(
    library: NativeLibrary, name: str, axis: int
) -> None:
    made = node(Case())
    weight = made.constants[name]
    constants = {**made.constants, name: np.delete(weight, -1, axis).copy()}
    with pytest.raises(Exception, match=r"codes|scales|columns|rows|values"):
        replace(made, constants=constants).session(library)


@pytest.mark.parametrize("names", [("k",), ("v",), ("k", "v"), ("q",)])
def test_projections_of_other_heads_are_refused(library: NativeLibrary, names: tuple[str, ...]) -> None:
    """Rows less one head's half, which is no whole head."""
    made = node(Case())
    changed = {
        f"{name}.{part}": made.constants[f"{name}.{part}"][:-16].copy()
        for name in names
        for part in ("codes", "scales")
    }
    with pytest.raises(Exception, match="they are not heads of 32"):
        replace(made, constants={**made.constants, **changed}).session(library)


LIES: dict[str, dict[str, tuple[int, ...]]] = {
    "another width of h": {"h": (1, 1, 32)},
    "h without rows": {"h": (1, 64)},
    "more tokens of cos": {"cos": (1, 2, 8)},
    "sin of other sizes": {"sin": (1, 1, 7)},
    "cos for more rows": {"cos": (2, 1, 8), "sin": (2, 1, 8)},
    "angles of more than a head": {"cos": (1, 1, 17), "sin": (1, 1, 17)},
    "no angles": {"cos": (1, 1, 0), "sin": (1, 1, 0)},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_step_of_other_sizes_is_refused(library: NativeLibrary, lie: str) -> None:
    made = node(Case())
    session = made.session(library)
    inputs = dict(made.inputs) | {name: np.ones(shape, np.float32) for name, shape in LIES[lie].items()}
    # ONNX Runtime itself refuses another number of axes.
    with pytest.raises(Exception, match=r"h has|cos or sin|cos has|rank"):
        session.run(None, inputs)
