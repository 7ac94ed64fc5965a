"""Held-out examples are requests that a server takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from infra.miniature import pictures, vocabulary
from infra.miniature.conversation import Encoder, Example
from infra.miniature.suite import main, request

pytestmark = pytest.mark.fast


def test_a_file_has_every_task_and_its_expected_answers_are_right(tokenizer: Tokenizer, tmp_path: Path) -> None:
    vocabulary.save(tokenizer, tmp_path)
    out = tmp_path / "suite.jsonl"
    options = ["--tokenizer", str(tmp_path / "tokenizer.json"), "--number", "16", "--lengths", "256", "512"]
    assert main([*options, "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert {line["task"] for line in lines} == {"glossary", "tools", "pictures", "retrieval 256", "retrieval 512"}
    assert {line["thinking"] for line in lines} == {False, True}
    named = {line["task"] for line in lines if "language" in line}
    assert named == {"glossary"}
    assert all(line["language"] in line["messages"][0]["content"] for line in lines if line["task"] in named)
    for line in lines:
        assert line["messages"][-1]["role"] in {"user", "tool"}
        example = Example(line["task"], (*line["messages"], line["expected"]), tuple(line["tools"]))
        if line["task"] != "pictures":
            assert example.is_right(Encoder(tokenizer).render(example).rpartition("<|im_start|>assistant\n")[2])


def test_a_picture_is_a_data_url() -> None:
    example = next(pictures.held_out(1, 0))
    item = request(example)["messages"][0]["content"][0]
    assert item["type"] == "image_url"
    assert item["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
