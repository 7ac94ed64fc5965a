"""The true shapes of Qwen3.5-397B-A17B: 60 layers, 512 experts, 94 shards, on a small machine.

A few seconds of the weight stage show its memory; `infra/bench/full_size.py` runs two layers to their end.
"""

from __future__ import annotations

import argparse

import pytest

from infra.bench.full_size import measure
from tests.checkpoints import write_sparse


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    scratch = tmp_path_factory.mktemp("full-size")
    options = argparse.Namespace(
        model="397B-A17B", weights="int4", memory="2GB", threads=128, layers=[0, 3], fraction=0.06
    )
    return measure(write_sparse(scratch / "checkpoint"), scratch, options)


def test_all_layers_are_checked_traced_and_lowered_in_five_minutes_and_2_gb(measured: dict[str, float]) -> None:
    assert measured["num_nodes"] > 60 * 3
    assert measured["graph_cpu_s"] < 300
    assert measured["graph_max_rss"] < 2e9


def test_the_weight_stage_stays_within_its_budget_with_many_threads(measured: dict[str, float]) -> None:
    """With 128 threads, slices of the usual size would exceed the budget, so they must become smaller."""
    assert measured["read_bytes"] > 1.5e9
    assert 1e9 < measured["weights_max_in_flight"] <= 2e9
    assert measured["weights_max_anonymous"] < 2.5e9
