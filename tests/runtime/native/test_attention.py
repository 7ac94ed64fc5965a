"""Attention over a cache beside its function body, and what it promises about memory, threads and odd values."""

from __future__ import annotations

import os

import numpy as np
import pytest

from qwonnx.runtime.native.library import NativeLibrary
from tests.runtime.native.attention import CACHES, KINDS, Arrays, Shape, attention_session, random_step, run_in_place

ROUNDS = int(os.environ.get("QWONNX_TEST_NATIVE_ROUNDS", "1"))  # times the random shapes; more for a long run
# Of the largest output, for these random steps. Products of codes round; test_attention_codes.py has their bound.
TOLERANCE = {"float32": 1e-5, "int8": 3e-4, "int4": 3e-4}

SHAPES = {
    "one token": Shape([700], 1, 16, 2, 256),
    "the first token": Shape([0], 1, 16, 2, 256),
    "one token of rows of different lengths": Shape([7, 300, 0, 257], 1, 6, 2, 64),
    "a few tokens of rows of different lengths": Shape([7, 300, 0], 3, 6, 2, 32),
    "a first chunk": Shape([0], 150, 8, 2, 64),
    "a chunk behind a past": Shape([333], 40, 8, 1, 128),
    "chunks of rows of different lengths": Shape([100, 0, 55], 90, 4, 1, 64),
    "one head": Shape([9], 1, 1, 1, 6),
    "no shared keys, an odd width": Shape([70], 5, 2, 2, 34),
    "a group of three": Shape([33], 7, 9, 3, 80),
    "a group of sixteen": Shape([300], 2, 16, 1, 96),
    "parts of a long row": Shape([20_000], 1, 4, 1, 16),
    "parts of rows of different lengths": Shape([5_000, 3, 700], 2, 4, 2, 32),
    "a large chunk": Shape([0], 600, 2, 1, 64),
    "no room left": Shape([40, 40], 8, 2, 1, 32, spare=0),
}


def random_shapes(kv: str) -> list[Shape]:
    random = np.random.default_rng([ROUNDS, KINDS.index(kv)])
    shapes = []
    for _ in range(6 * ROUNDS):
        num_kv_heads, rows = int(random.integers(1, 4)), int(random.integers(1, 4))
        num_tokens = int(random.integers(1, 40) if random.random() < 0.8 else random.integers(40, 600))
        head_dim = 2 * int(random.integers(1, 80)) if random.random() < 0.5 else int(random.choice([64, 128]))
        lengths = [int(length) for length in random.integers(0, 700, rows)]
        shapes += [Shape(lengths, num_tokens, num_kv_heads * int(random.integers(1, 10)), num_kv_heads, head_dim)]
    return shapes


def assert_equals_body(kv: str, shape: Shape, arrays: Arrays, library: NativeLibrary) -> None:
    expected = attention_session(kv, shape.num_heads, None).run(None, arrays)
    actual = attention_session(kv, shape.num_heads, library).run(None, arrays)
    for name, own, body in zip(CACHES, actual[1:], expected[1:], strict=True):
        assert np.array_equal(own, body), (name, shape)
    assert np.abs(actual[0] - expected[0]).max() <= TOLERANCE[kv] * np.abs(expected[0]).max(), shape


@pytest.mark.parametrize("kv", KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_outputs_are_those_of_the_body(library: NativeLibrary, instructions: str, name: str, kv: str) -> None:
    assert_equals_body(kv, SHAPES[name], random_step(kv, SHAPES[name]), library)


@pytest.mark.parametrize("kv", KINDS)
def test_random_steps_equal_the_body(library: NativeLibrary, instructions: str, kv: str) -> None:
    for seed, shape in enumerate(random_shapes(kv)):
        assert_equals_body(kv, shape, random_step(kv, shape, seed), library)


def test_an_odd_width_of_floats_or_bytes_equals_the_body(library: NativeLibrary, instructions: str) -> None:
    for head_dim in (1, 3, 7, 33, 65):
        for kv in ("float32", "int8"):
            for num_tokens in (1, 20):
                shape = Shape([50], num_tokens, 3, 1, head_dim)
                assert_equals_body(kv, shape, random_step(kv, shape), library)


@pytest.mark.parametrize("kv", KINDS)
@pytest.mark.parametrize("num_tokens", [1, 3, 70])
def test_the_cache_is_updated_in_place_and_its_rest_is_never_used(
    library: NativeLibrary, instructions: str, kv: str, num_tokens: int
) -> None:
    """What lies behind a row's tokens may be anything: memory of an earlier sequence, or no number at all."""
    shape = Shape([900, 0, 260], num_tokens, 8, 2, 64)
    arrays = random_step(kv, shape)
    session = attention_session(kv, shape.num_heads, library)
    expected, *presents = session.run(None, arrays)
    buffers = {name: arrays[name].copy() for name in CACHES}
    for name in CACHES:
        for row, length in enumerate(shape.lengths):
            buffers[name][row, :, length:] = np.nan if kv == "float32" else 99
    assert np.array_equal(run_in_place(session, arrays | buffers), expected)
    for name, present in zip(CACHES, presents, strict=True):
        for row, length in enumerate(shape.lengths):
            end = length + num_tokens
            assert np.array_equal(buffers[name][row, :, :end], present[row, :, :end])
            rest = buffers[name][row, :, end:]
            assert np.isnan(rest).all() if kv == "float32" else (rest == 99).all()


@pytest.mark.parametrize("kv", KINDS)
def test_bits_do_not_depend_on_threads_or_on_the_other_rows(library: NativeLibrary, kv: str) -> None:
    for shape in (Shape([3000, 40, 0], 1, 8, 2, 64), Shape([1500, 10], 5, 4, 2, 64), Shape([100, 0], 90, 8, 1, 64)):
        arrays = random_step(kv, shape)
        outputs = [attention_session(kv, shape.num_heads, library, threads).run(None, arrays) for threads in (1, 2, 4)]
        for other in outputs[1:]:
            assert all(np.array_equal(one, two) for one, two in zip(outputs[0], other, strict=True))
        session = attention_session(kv, shape.num_heads, library)
        for row in range(len(shape.lengths)):
            alone = {name: array if "scale" in name else array[row : row + 1] for name, array in arrays.items()}
            assert np.array_equal(session.run(None, alone)[0][0], outputs[0][0][row])


@pytest.mark.parametrize("kv", KINDS)
def test_tokens_one_by_one_leave_the_cache_of_one_chunk(library: NativeLibrary, kv: str) -> None:
    shape = Shape([250], 20, 8, 2, 64)
    whole = random_step(kv, shape)
    session = attention_session(kv, shape.num_heads, library)
    expected, *presents = session.run(None, whole)
    buffers = {name: whole[name].copy() for name in CACHES}
    attended = []
    for token in range(shape.num_tokens):
        part = {name: whole[name][:, token : token + 1] for name in ("query", "key", "value", "gate")}
        step = {**whole, **part, **buffers, "past_lengths": np.array([shape.lengths[0] + token])}
        attended.append(run_in_place(session, {name: np.ascontiguousarray(array) for name, array in step.items()}))
    for name, present in zip(CACHES, presents, strict=True):
        assert np.array_equal(buffers[name], present)
    assert np.abs(np.concatenate(attended, axis=1) - expected).max() <= TOLERANCE[kv] * np.abs(expected).max()


@pytest.mark.parametrize("kv", ["int8", "int4"])
def test_codes_saturate_and_round_as_in_the_body(library: NativeLibrary, instructions: str, kv: str) -> None:
    shape = Shape([3], 6, 2, 1, 32)
    arrays = random_step(kv, shape)
    arrays["key_scale"][:] = 0.25
    arrays["key"][0, 0] = np.tile([0.125, -0.125, 0.375, -0.375], 8)  # halves
    arrays["key"][0, 1] = np.tile([31.9, -32.1, 1.9, -2.1], 8)  # about the ends of both ranges
    arrays["key"][0, 2] = np.tile([1e30, -1e30, np.inf, -np.inf], 8)
    arrays["value_scale"][0, 0, 0, :4] = [1e-30, 1e30, 3e38, 1e-38]
    expected = attention_session(kv, 2, None).run(None, arrays)
    actual = attention_session(kv, 2, library).run(None, arrays)
    assert all(np.array_equal(own, body) for own, body in zip(actual[1:], expected[1:], strict=True))


@pytest.mark.parametrize("num_tokens", [1, 30])
@pytest.mark.parametrize("stray", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_not_hidden(
    library: NativeLibrary, instructions: str, stray: float, num_tokens: int
) -> None:
    """Nor does it reach another row."""
    shape = Shape([500, 500], num_tokens, 4, 2, 64)
    session = attention_session("float32", shape.num_heads, library)
    arrays = random_step("float32", shape)
    clean = session.run(None, arrays)[0]
    for name, place in (("query", (1, -1, 5)), ("past_key", (1, 0, 7, 5)), ("past_value", (1, 0, 7, 5))):
        strayed = arrays | {name: arrays[name].copy()}
        strayed[name][place] = stray
        attended = session.run(None, strayed)[0]
        assert not np.isfinite(attended[1, -1, :64]).all(), name
        assert np.array_equal(attended[0], clean[0]), name


def test_large_scores_do_not_overflow(library: NativeLibrary, instructions: str) -> None:
    shape = Shape([600], 9, 4, 1, 64)
    arrays = random_step("float32", shape)
    for name in ("query", "key", "past_key"):
        arrays[name] *= 100
    assert_equals_body("float32", shape, arrays, library)
    arrays["query"] *= 1e15
    assert np.isfinite(attention_session("float32", 4, library).run(None, arrays)[0]).all()


@pytest.mark.parametrize("kv", KINDS)
def test_nothing_to_do_is_done(library: NativeLibrary, kv: str) -> None:
    for shape in (Shape([], 3, 4, 2, 16), Shape([5, 0], 0, 4, 2, 16)):
        arrays = random_step(kv, shape)
        attended, *presents = attention_session(kv, 4, library).run(None, arrays)
        assert attended.shape == arrays["query"].shape
        assert all(np.array_equal(arrays[name], present) for name, present in zip(CACHES, presents, strict=True))
