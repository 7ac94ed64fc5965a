"""The benchmark of caches reports the right numbers, on small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.bench import kv_cache


def test_every_kind_is_measured_as_lowered_and_bare(capsys: pytest.CaptureFixture[str]) -> None:
    kv_cache.main(["speed", "--positions", "300", "--chunk", "9", "--threads", "1", "--rounds", "1"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    measured = {(row["kv"], row["tokens"], row["bare_kernel"]) for row in summary["results"]}
    assert measured == {(kind, n, bare) for kind in kv_cache.KINDS for n in (1, 9) for bare in (False, True)}
    assert all(row["wall_ms"] > 0 for row in summary["results"])


def test_the_loss_of_a_checkpoint_is_reported(long_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kv_cache.main(["loss", str(long_checkpoint), "--tokens", "40"])
    int8, int4 = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert 0 < int8["mean_kl"] < int4["mean_kl"] < 0.1
    for kind in ("key", "value"):
        assert int8[f"{kind}_clipped"] == 0 <= int4[f"{kind}_clipped"] < 1e-3
        assert 0 < int8[f"{kind}_relative_error"] < int4[f"{kind}_relative_error"] < 0.3
