"""A loop in which the model calls functions until it can answer: `python examples/agent.py [MODEL] [REQUEST]`.

The functions' type hints and docstrings are all that the model is told about them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from qwonnx import LLM, Answer

MINIATURE = Path(__file__).parent.parent / "tests" / "miniature" / "checkpoint"
MOST_STEPS = 5


def set_light(room: Literal["kitchen", "bedroom", "garden", "office"], brightness: int) -> dict[str, int]:
    """Set the light of a room."""
    return {"watts": brightness // 2}


def get_stock(article: str, shop: int) -> dict[str, int]:
    """Get the stock of an article"""
    return {"pieces": 40 + shop}


def main(model: str | Path = MINIATURE, request: str = "Set the light in the kitchen to 70.") -> None:
    tools = [set_light, get_stock]
    messages: list[dict[str, Any] | Answer] = [{"role": "user", "content": request}]
    with LLM(model) as llm:
        for _ in range(MOST_STEPS):
            answer = llm.chat(messages, tools=tools, thinking=False, temperature=0, max_tokens=128)
            if not answer.tool_calls:
                print(answer)
                return
            messages.append(answer)
            for call in answer.tool_calls:
                result = call.run()
                print(f"{call.name}({call.arguments}) -> {result}")
                messages.append(call.result(result))
    raise SystemExit(f"no answer after {MOST_STEPS} steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
