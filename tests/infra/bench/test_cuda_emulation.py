"""The bounds of float16 on the trained miniature: what it answers, and how likely."""

from __future__ import annotations

import json

import pytest

from infra.bench.cuda_emulation import main


@pytest.mark.soak
def test_float16_gives_the_same_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """Three minutes."""
    main([])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["same answers"] >= 0.99 * found["questions"]
    assert found["mean KL"] <= 1e-3
