"""Python functions as tools."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import pytest

from qwonnx.handlers.library.errors import AnswerError
from qwonnx.handlers.library.functions import call_with, definition_of
from qwonnx.runtime.errors import InvalidRequestError

pytestmark = pytest.mark.fast


@dataclass
class Point:
    x: float
    y: float = 0.0


def place(
    city: str,
    unit: Literal["C", "F"] = "C",
    days: Annotated[int, msgspec.Meta(ge=1, le=14)] = 1,
    near: list[Point] | None = None,
    extra: Any = None,
) -> tuple[Any, ...]:
    """The weather of a city,
    today and later.

    Only for cities.

    Args:
        city: its name,
            in English.
        days (int): how many.
        near: other places.

    Returns:
        a forecast.
    """
    return city, unit, days, near, extra


def test_signature_and_docstring_become_a_schema() -> None:
    made = definition_of(place)
    assert (made.name, made.strict) == ("place", True)
    assert made.description == "The weather of a city, today and later.\nOnly for cities."
    assert made.parameters is not None
    properties = made.parameters["properties"]
    assert properties["city"] == {"type": "string", "description": "its name, in English."}
    assert properties["unit"] == {"enum": ["C", "F"]}
    assert properties["days"] == {"type": "integer", "minimum": 1, "maximum": 14, "description": "how many."}
    assert properties["near"]["anyOf"][0]["items"] == {"$ref": "#/$defs/Point"}
    assert properties["extra"] == {}
    assert made.parameters["required"] == ["city"]
    assert made.parameters["$defs"]["Point"]["additionalProperties"] is False


def test_arguments_become_instances_of_the_types() -> None:
    arguments = {"city": "Bonn", "near": [{"x": 1}], "extra": [1]}
    assert call_with(place, arguments) == ("Bonn", "C", 1, [Point(1.0)], [1])
    with pytest.raises(AnswerError, match="the argument days does not have its type"):
        call_with(place, {"city": "Bonn", "days": 40})


def test_methods_and_objects_are_functions_too() -> None:
    class Thermometer:
        def read(self, place: str) -> str:
            return place

        def __call__(self, place: str) -> str:
            return place

    for each, name in ((Thermometer().read, "read"), (Thermometer(), "Thermometer")):
        made = definition_of(each)
        assert made.name == name
        assert made.parameters is not None
        assert list(made.parameters["properties"]) == ["place"]
        assert call_with(each, {"place": "here"}) == "here"


def test_what_has_no_schema_is_refused() -> None:
    def many(*cities: str) -> None: ...

    def odd(city: complex) -> None: ...

    for function, message in ((many, r"takes \*cities"), (odd, "the parameter city of odd has a type without")):
        with pytest.raises(InvalidRequestError, match=message):
            definition_of(function)
    with pytest.raises(InvalidRequestError):
        definition_of(partial(lambda *args: None))
