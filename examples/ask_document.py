"""Asks many questions about one text: `python examples/ask_document.py [MODEL] [TEXT.txt] [QUESTION ...]`.

The text is read once. The prefix cache keeps the states after the text. Each further question reads only itself.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from qwonnx import LLM

MINIATURE = Path(__file__).parent.parent / "tests" / "miniature" / "checkpoint"
TEXT = "The office opens at nine. The garden is closed on Sunday. " * 60
QUESTIONS = ("When does the office open?", "When is the garden closed?", "What is Japan called in Georgian?")


def main(model: str | Path = MINIATURE, path: str | None = None, *questions: str) -> None:
    text = TEXT if path is None else Path(path).read_text(encoding="utf-8")
    with LLM(model) as llm:
        for question in questions or QUESTIONS:
            began = time.monotonic()
            answer = llm.chat(question, system=f"Answer from this text.\n\n{text}", thinking=False, max_tokens=32)
            usage, seconds = answer.usage, time.monotonic() - began
            print(f"{question} {answer}")
            print(
                f"  {usage.num_prompt_tokens} tokens, {usage.num_cached_tokens} of them not read again, {seconds:.2f} s"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
