"""`--adapter` of generate, chat and eval: the adapter answers, as in LLM."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.bench.runtime_adapters import write_adapter
from qwonnx import LLM
from qwonnx.export.pipeline import ExportOptions, export_checkpoint
from qwonnx.handlers.cli.chat import chat
from qwonnx.handlers.cli.eval import evaluate
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.generate import generate
from tests.checkpoints import write_tiny


@pytest.fixture(scope="module")
def slots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slots")
    options = ExportOptions(weights="fp32", activations="float32", runtime_adapters=("q_proj", "o_proj"))
    export_checkpoint(write_tiny(folder / "checkpoint"), folder / "artifact", options)
    write_adapter(folder / "artifact", folder / "one", 8, 0, 0.5)
    return folder


def test_the_adapter_answers(slots: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, place = slots / "artifact", str(slots / "one")
    greedy: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}
    with LLM(artifact, adapter=place, num_threads=1, max_model_len=128) as llm:
        texts = {name: llm.generate("Hello there", adapter=name, **greedy) for name in ("", None)}
        chats = {name: llm.chat("Hi", thinking=False, adapter=name, **greedy) for name in ("", None)}
    assert texts[""] != texts[None]
    assert chats[""] != chats[None]
    for adapter, name in ((None, ""), (place, None)):
        options = {"adapter": adapter, "threads": 1, "max_model_len": 128, **greedy}
        generate(artifact, prompt="Hello there", **options)
        assert capsys.readouterr().out.rstrip("\n") == texts[name].rstrip("\n")
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
        chat(artifact, thinking=False, **options)
        assert capsys.readouterr().out.rstrip("\n") == chats[name].rstrip("\n")


def test_eval_measures_the_adapter(slots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A text to measure. " * 20)
    found = []
    for adapter in (None, str(slots / "one")):
        evaluate(str(slots / "artifact"), text=text, threads=1, adapter=adapter, as_json=True)
        found.append(json.loads(capsys.readouterr().out)["text"])
    assert found[0] != found[1]
    with pytest.raises(CommandError, match="--adapter is for artifacts"):
        evaluate(str(slots / "checkpoint"), text=text, adapter=str(slots / "one"))


def test_a_server_is_asked_by_the_adapters_name(slots: Path) -> None:
    with pytest.raises(CommandError, match="give the adapter's name as --model"):
        chat(url="http://127.0.0.1:9", adapter=str(slots / "one"))
