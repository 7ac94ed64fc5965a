"""Weight files from a seed: sizes, values, and what a step reads of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.gpu.seeded_weights import EXPERTS, ROWS, SeededTensor, SeededWeights, fill

pytestmark = pytest.mark.fast

CODES = SeededTensor("experts.codes", "a.bin", 0, 5_000_000, "uint8", 0.0, 0.0, EXPERTS)
SCALES = SeededTensor("experts.scales", "b.bin", 4096, 2000, "float16", 0.5, 1.5, EXPERTS)
NORM = SeededTensor("norm", "b.bin", 8192, 400, "float32", 1.0, 1.0, "all")
EMBEDDING = replace(CODES, name="embedding", file="c.bin", num_bytes=100, share=ROWS)


def test_files_have_all_tensors_in_their_places_and_are_the_same_each_time(tmp_path: Path) -> None:
    SeededWeights([CODES, NORM, SCALES, EMBEDDING], 8, 2).save(tmp_path)
    assert fill(tmp_path) == 5_000_000 + 8592 + 100
    codes = np.fromfile(tmp_path / "a.bin", np.uint8)
    assert abs(np.bincount(codes, minlength=256) / len(codes) - 1 / 256).max() < 1e-3
    scales = np.fromfile(tmp_path / "b.bin", np.float16, 1000, offset=4096)
    assert 0.5 <= scales.min() < 0.6
    assert 1.4 < scales.max() <= 1.5
    assert (np.fromfile(tmp_path / "b.bin", np.float32, 100, offset=8192) == 1).all()
    before = (tmp_path / "a.bin").read_bytes()
    fill(tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == before


def test_a_step_reads_the_experts_that_its_tokens_choose_and_a_few_rows_of_the_embedding() -> None:
    weights = SeededWeights([CODES, NORM, EMBEDDING], 8, 2)
    assert weights.bytes_read(1) == pytest.approx(5_000_000 / 4 + 400)
    assert weights.bytes_read(2) == pytest.approx(5_000_000 * (1 - 0.75**2) + 400)
    assert weights.bytes_read(1000) == pytest.approx(5_000_400)
    assert SeededWeights([NORM], 0, 0).bytes_read(1) == 400
