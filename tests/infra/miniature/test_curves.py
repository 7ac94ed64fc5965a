"""Curves of one training, and of one that continued another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.miniature import curves

pytestmark = pytest.mark.fast


def write_log(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_several_logs_are_drawn_as_one_course(tmp_path: Path) -> None:
    first = write_log(
        tmp_path / "first.jsonl",
        {"step": 10, "tokens": 1_000_000, "losses": {"short": 4.0}},
        {"step": 20, "tokens": 2_000_000, "scores": {"tools": {"exact": 0.5}}},
    )
    second = write_log(
        tmp_path / "second.jsonl",
        {"step": 0, "tokens": 0, "scores": {"tools": {"exact": 0.5}}},
        {"step": 10, "tokens": 2_000_000, "losses": {"short": 1.0}},
    )
    assert curves.main([str(first), str(second), "--out", str(tmp_path / "curves.svg")]) == 0
    drawn = (tmp_path / "curves.svg").read_text()
    # A quarter and the whole of four million tokens; half of them for both scores.
    assert 'points="216.0,28.0 696.0,208.0"' in drawn
    assert 'points="376.0,452.0 376.0,452.0"' in drawn


def test_scores_alone_are_drawn_too(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", {"step": 0, "tokens": 0, "scores": {"tools": {"exact": 0.5}}})
    curves.main([str(log), "--out", str(tmp_path / "curves.svg")])
    assert "<polyline" in (tmp_path / "curves.svg").read_text()
