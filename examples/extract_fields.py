"""Takes fields out of a text, as an instance of a class: `python examples/extract_fields.py [MODEL] [TEXT]`.

The answer cannot have another form than the class, whatever the model. That the values are right is the model's part:
the miniature has read no letters, so here it only shows the form.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwonnx import LLM

MINIATURE = Path(__file__).parent.parent / "tests" / "miniature" / "checkpoint"
LETTER = "Dear all, the Nordic Pencil Company asks for 250 pencils by Tuesday. Yours, Kari"


@dataclass
class Order:
    """What a letter orders."""

    kind: Literal["order", "question", "complaint"]
    day: Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
    urgent: bool


def main(model: str | Path = MINIATURE, text: str = LETTER) -> None:
    with LLM(model) as llm:
        question = f"Say the kind of this letter, the day that it names, and whether it is urgent, as JSON.\n\n{text}"
        answer = llm.chat(question, schema=Order, thinking=False, temperature=0, max_tokens=256)
    print(answer)
    order = answer.parsed
    print(f"{order.kind} for {order.day}{', urgent' if order.urgent else ''}")


if __name__ == "__main__":
    main(*sys.argv[1:])
