"""The load that the benchmark makes, and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.bench import throughput
from infra.bench.throughput import Answer, Prompts, Round, summary
from tests.runtime.counting_model import make


def test_prompts_have_the_length_they_are_said_to_have_and_differ(tmp_path: Path) -> None:
    model = make(tmp_path / "artifact")
    prompts = Prompts(model.folder)
    texts = [prompts.text(number) for number in range(-4, 4)]
    assert len(set(texts)) == len(texts)
    for text in texts:
        tokens = model.tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
        assert throughput.PROMPT_TOKENS <= len(tokens) <= throughput.PROMPT_TOKENS + 2


def test_it_measures_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make(tmp_path / "artifact")
    throughput.main([str(model.folder), "--clients", "3", "--rounds", "2", "--threads", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["qwonnx"]["tokens_per_s"] > 0
    assert result["qwonnx"]["slowest_first_token"] >= 1
    assert "ratio" not in result


def test_rates_are_of_all_tokens_and_ratios_of_the_rounds() -> None:
    fast = Round((Answer(1.0, 2.0, 128, 64), Answer(3.0, 4.0, 128, 64)))
    slow = Round((Answer(1.0, 2.0, 128, 64), Answer(1.0, 8.0, 128, 64)))
    assert (fast.tokens_per_s, fast.slowest_first_token) == (96.0, 1.5)
    result = summary({"qwonnx": [fast, slow], "llama-server": [slow, slow]})
    assert result["ratio"] == {"median": 1.5, "lowest": 1.0, "highest": 2.0}
    assert result["qwonnx"]["slowest_first_token"] == 1.5
