"""What a session asks, and what the miniature answers. questions.json has the same for JavaScript's sessions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_KNOWN: dict[str, Any] = json.loads(Path(__file__).with_name("questions.json").read_text(encoding="utf-8"))

MODEL = "miniature"
QUESTION: str = _KNOWN["question"]
USER: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
ANSWER: str = _KNOWN["answer"]
THOUGHTS: str = _KNOWN["thoughts"]
"""The reasoning before the answer."""

NEXT_QUESTION: str = _KNOWN["next_question"]
NEXT_ANSWER: str = _KNOWN["next_answer"]

WEATHER_QUESTION: str = _KNOWN["weather_question"]
WEATHER_USER: list[dict[str, Any]] = [{"role": "user", "content": WEATHER_QUESTION}]
CALL: dict[str, Any] = _KNOWN["call"]
"""The arguments of the call that answers it."""

WEATHER: dict[str, Any] = _KNOWN["weather"]
"""What the tool says."""

WEATHER_ANSWER: str = _KNOWN["weather_answer"]
PARAMETERS: dict[str, Any] = _KNOWN["parameters"]
"""The tool's schema."""

TOOL: dict[str, Any] = {"name": "get_weather", "description": "The weather of a city", "parameters": PARAMETERS}
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": TOOL}]
FACT: dict[str, Any] = _KNOWN["fact"]
"""A schema that no model can answer wrongly: an enumeration and a bounded number."""

COUNTRIES: list[str] = FACT["properties"]["country"]["enum"]


def get_weather(city: str, days: int) -> str:
    """The weather of a city"""
    assert {"city": city, "days": days} == CALL
    return json.dumps(WEATHER)


def is_fact(value: Any) -> bool:
    """Whether a value, or its text, follows FACT."""
    found = json.loads(value) if isinstance(value, str) else value
    return set(found) == {"country", "days"} and found["country"] in COUNTRIES and 1 <= found["days"] <= 7
