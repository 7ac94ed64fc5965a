"""Tool calls: given tools, a request becomes one call or two; given the tools' responses, they become an answer.

Twelve tools with parameters of every JSON type are known; which are offered, with which distractors and in which
order, and all values, are random. Held out are phrasings of the requests and invented names (invented.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.miniature import invented
from tests.miniature.conversation import Example, Json

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SKIES = ("sunny", "cloudy", "rainy", "windy")
_ROOMS = ("kitchen", "bedroom", "garden", "office")
_DISHES = ("soup", "rice", "bread", "salad", "pasta", "tea")

Values = dict[str, Any]
Draw = Callable[[np.random.Generator, bool], Any]


@dataclass(frozen=True, slots=True)
class _Tool:
    """One tool: its parameters as JSON schemas, how values and a response are drawn, and what is said.

    `requests` are phrasings for training, `held_out` the others; both name parameters in braces. A `{flag}` part is
    written by `spoken`. `answer` may name parameters and fields of the response.
    """

    name: str
    description: str
    schemas: Mapping[str, Json]
    draws: Mapping[str, Draw]
    requests: tuple[str, ...]
    held_out: tuple[str, ...]
    response: Mapping[str, Draw]
    answer: str

    def definition(self) -> Json:
        parameters = {"type": "object", "properties": dict(self.schemas), "required": list(self.schemas)}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


def _integer(low: int, high: int) -> Draw:
    return lambda random, held_out: int(random.integers(low, high + 1))


def _decimal(low: int, high: int) -> Draw:
    # Hundredths that end in five: never a whole number, whose spelling a schema could not settle.
    return lambda random, held_out: round(int(random.integers(low * 10, high * 10)) / 10 + 0.05, 2)


def _boolean(random: np.random.Generator, held_out: bool) -> bool:
    return bool(random.random() < 0.5)


def _name(random: np.random.Generator, held_out: bool) -> str:
    return invented.name(random, held_out=held_out)


def _one_of(items: tuple[str, ...]) -> Draw:
    return lambda random, held_out: invented.choice(random, items)


def _some_of(items: tuple[str, ...]) -> Draw:
    def draw(random: np.random.Generator, held_out: bool) -> list[str]:
        size = int(random.integers(1, 4))
        return [items[index] for index in random.permutation(len(items))[:size]]

    return draw


_STRING: Json = {"type": "string"}
_INTEGER: Json = {"type": "integer"}
_NUMBER: Json = {"type": "number"}
_BOOLEAN: Json = {"type": "boolean"}

TOOLS = (
    _Tool(
        "get_weather", "The weather of a city", {"city": _STRING, "days": _INTEGER},
        {"city": _name, "days": _integer(1, 14)},
        ("What will the weather be in {city} in {days} days?", "Give me the weather for {city} in {days} days.",
         "Weather in {city}, {days} days from now?"),
        ("How will the weather be in {city} in {days} days?",),
        {"sky": _one_of(_SKIES), "temperature": _integer(1, 39)}, "In {city} it will be {sky}, {temperature} degrees.",
    ),
    _Tool(
        "set_alarm", "Set an alarm", {"hour": _INTEGER, "minute": _INTEGER},
        {"hour": _integer(0, 23), "minute": _integer(10, 59)},
        ("Set an alarm for {hour}:{minute}.", "Please wake me at {hour}:{minute}.", "I need an alarm at {hour}:{minute}."),
        ("Set my alarm at {hour}:{minute}, please.",),
        {"number": _integer(1, 99)}, "Alarm {number} is set for {hour}:{minute}.",
    ),
    _Tool(
        "book_table", "Book a table at a restaurant", {"restaurant": _STRING, "people": _INTEGER, "outdoor": _BOOLEAN},
        {"restaurant": _name, "people": _integer(2, 9), "outdoor": _boolean},
        ("Book a table for {people} at {restaurant}, {outdoor}.", "I want a table at {restaurant} for {people}, {outdoor}.",
         "Get us a table {outdoor} for {people} at {restaurant}."),
        ("Please book {restaurant} for {people}, {outdoor}.",),
        {"hour": _integer(17, 22)}, "Your table at {restaurant} is booked for {hour}:00.",
    ),
    _Tool(
        "play_music", "Play an artist's music", {"artist": _STRING, "volume": _INTEGER, "shuffle": _BOOLEAN},
        {"artist": _name, "volume": _integer(1, 99), "shuffle": _boolean},
        ("Play {artist} at volume {volume}, {shuffle}.", "I want to hear {artist} {shuffle} at volume {volume}.",
         "Music by {artist}, volume {volume}, {shuffle}."),
        ("Please play {artist}, {shuffle}, at volume {volume}.",),
        {"song": _name}, "Now playing {song} by {artist}.",
    ),
    _Tool(
        "send_message", "Send a message to a person", {"recipient": _STRING, "text": _STRING},
        {"recipient": _name, "text": lambda random, held_out: f"We meet {_DAYS[int(random.integers(7))]} in the "
         f"{invented.choice(random, _ROOMS)}"},
        ("Tell {recipient}: {text}.", "Send {recipient} a message: {text}.", "Write to {recipient}: {text}."),
        ("Send this to {recipient}: {text}.",),
        {"number": _integer(1, 99)}, "Message {number} was sent to {recipient}.",
    ),
    _Tool(
        "find_flights", "Find flights between two cities", {"origin": _STRING, "destination": _STRING, "direct": _BOOLEAN},
        {"origin": _name, "destination": _name, "direct": _boolean},
        ("Find flights from {origin} to {destination}, {direct}.", "I want to fly from {origin} to {destination}, {direct}.",
         "Which flights go to {destination} from {origin}, {direct}?"),
        ("Please find a flight to {destination} from {origin}, {direct}.",),
        {"airline": _name, "price": _integer(50, 990)}, "{airline} flies to {destination} for {price}.",
    ),
    _Tool(
        "create_event", "Add an event to the calendar", {"title": _STRING, "day": {"type": "string", "enum": list(_DAYS)},
         "hours": _NUMBER},
        {"title": _name, "day": _one_of(_DAYS), "hours": _decimal(1, 9)},
        ("Add {title} on {day} for {hours} hours.", "On {day} I have {title} for {hours} hours, add it.",
         "Create an event on {day}: {title}, {hours} hours."),
        ("Please create {title} for {hours} hours on {day}.",),
        {"number": _integer(1, 99)}, "{title} is event {number}, on {day}.",
    ),
    _Tool(
        "set_light", "Change the light of a room", {"room": {"type": "string", "enum": list(_ROOMS)}, "brightness": _INTEGER},
        {"room": _one_of(_ROOMS), "brightness": _integer(0, 99)},
        ("Set the {room} light to {brightness}.", "Light in the {room} at {brightness}, please.",
         "I want the {room} at brightness {brightness}."),
        ("Please set the light of the {room} to {brightness}.",),
        {"watts": _integer(1, 60)}, "The {room} light is at {brightness} and uses {watts} watts.",
    ),
    _Tool(
        "convert_money", "Convert an amount of money", {"amount": _NUMBER, "source": _STRING, "target": _STRING},
        {"amount": _decimal(1, 99), "source": _one_of(("EUR", "USD", "GBP")), "target": _one_of(("JPY", "CNY", "INR"))},
        ("Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?",
         "{amount} {source} in {target}, please."),
        ("What is {amount} {source} in {target}?",),
        {"result": _decimal(1, 999)}, "{amount} {source} is {result} {target}.",
    ),
    _Tool(
        "order_food", "Order dishes to a table", {"dishes": {"type": "array", "items": _STRING}, "table": _INTEGER},
        {"dishes": _some_of(_DISHES), "table": _integer(1, 40)},
        ("Order {dishes} for table {table}.", "Table {table} wants {dishes}.", "Bring {dishes} to table {table}."),
        ("Please order {dishes} to table {table}.",),
        {"minutes": _integer(5, 50)}, "The order for table {table} takes {minutes} minutes.",
    ),
    _Tool(
        "find_books", "Find books of an author", {"author": _STRING, "limit": _INTEGER},
        {"author": _name, "limit": _integer(1, 20)},
        ("Find {limit} books by {author}.", "Which {limit} books did {author} write?", "Show {limit} books of {author}."),
        ("Please find {author}, {limit} books.",),
        {"first": _name, "count": _integer(1, 20)}, "There are {count} books by {author}, the first is {first}.",
    ),
    _Tool(
        "get_stock", "How many pieces of an article a shop has", {"article": _STRING, "shop": _INTEGER},
        {"article": _name, "shop": _integer(100, 999)},
        ("How many {article} does shop {shop} have?", "Stock of {article} in shop {shop}?",
         "Is there any {article} in shop {shop}?"),
        ("Does shop {shop} have {article}?",),
        {"pieces": _integer(0, 500)}, "Shop {shop} has {pieces} pieces of {article}.",
    ),
)  # fmt: skip

# How a request says a boolean, which no one writes as True or False.
_SPOKEN = {
    "outdoor": ("outside", "inside"),
    "shuffle": ("in any order", "in order"),
    "direct": ("without a stop", "with stops"),
}


def training_example(random: np.random.Generator) -> Example:
    """A conversation of one to three requests, each with its calls, responses and answer."""
    return _conversation(random, int(random.integers(1, 4)), held_out=False, thinking=bool(random.random() < 0.4))


def held_out(number: int, seed: int, *, thinking: bool = False) -> Iterator[Example]:
    """Conversations of one request, phrased as in no training example; the last turn is the call or the answer."""
    random = np.random.default_rng([seed, 12])
    for index in range(number):
        example = _conversation(random, 1, held_out=True, thinking=thinking)
        if index % 2:
            yield example
        else:  # up to the call
            yield Example(example.task, example.messages[:2], example.tools, thinking=thinking)


def _conversation(random: np.random.Generator, number: int, *, held_out: bool, thinking: bool) -> Example:
    offered = [TOOLS[index] for index in random.permutation(len(TOOLS))[: int(random.integers(1, 4))]]
    messages: list[Json] = []
    for _ in range(number):
        messages += _exchange(random, offered, held_out, thinking)
    return Example("tools", tuple(messages), tuple(tool.definition() for tool in offered), thinking=thinking)


def _exchange(random: np.random.Generator, offered: list[_Tool], held_out: bool, thinking: bool) -> Iterator[Json]:
    """A request, the calls, the responses, the answer."""
    used = [offered[int(random.integers(len(offered)))] for _ in range(1 + int(random.random() < 0.3))]
    values = [{name: draw(random, held_out) for name, draw in tool.draws.items()} for tool in used]
    responses = [{name: draw(random, held_out) for name, draw in tool.response.items()} for tool in used]
    requests = [
        invented.choice(random, tool.held_out if held_out else tool.requests).format(**_spoken(arguments))
        for tool, arguments in zip(used, values, strict=True)
    ]
    yield {"role": "user", "content": " ".join(requests)}
    calls = [
        {"type": "function", "function": {"name": tool.name, "arguments": arguments}}
        for tool, arguments in zip(used, values, strict=True)
    ]
    yield _thought({"role": "assistant", "content": "", "tool_calls": calls}, thinking, _plan(used))
    for response in responses:
        yield {"role": "tool", "content": json.dumps(response)}
    answers = [
        tool.answer.format(**_spoken(arguments), **response)
        for tool, arguments, response in zip(used, values, responses, strict=True)
    ]
    yield _thought({"role": "assistant", "content": " ".join(answers)}, thinking, "The tool has answered.")


def _spoken(arguments: Values) -> dict[str, str]:
    said: dict[str, str] = {}
    for name, value in arguments.items():
        if isinstance(value, bool):
            said[name] = _SPOKEN[name][0 if value else 1]
        elif isinstance(value, list):
            said[name] = " and ".join(value)
        else:
            said[name] = str(value)
    return said


def _plan(used: list[_Tool]) -> str:
    return f"I call {' and '.join(tool.name for tool in used)}."


def _thought(message: Json, thinking: bool, reasoning: str) -> Json:
    return {**message, "reasoning_content": reasoning} if thinking else message
