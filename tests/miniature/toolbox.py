"""Twelve tools with parameters of every JSON type: what defines them, how they are asked for and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.miniature import invented
from tests.miniature.conversation import Json

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SKIES = ("sunny", "cloudy", "rainy", "windy")
_ROOMS = ("kitchen", "bedroom", "garden", "office")
_DISHES = ("soup", "rice", "bread", "salad", "pasta", "tea")

Values = dict[str, Any]
Draw = Callable[[np.random.Generator, bool], Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: its parameters as JSON schemas, how values and a response are drawn, and what is said.

    `requests` and `variations` are phrasings for training, `held_out` the others; all name parameters in braces. The
    vocabulary was learnt before there were variations, and knows nothing of them. A `{flag}` part is written by
    `spoken`. `answer` may name parameters and fields of the response.
    """

    name: str
    description: str
    schemas: Mapping[str, Json]
    draws: Mapping[str, Draw]
    requests: tuple[str, ...]
    held_out: tuple[str, ...]
    response: Mapping[str, Draw]
    answer: str
    variations: tuple[str, ...]

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
    Tool(
        "get_weather",
        "The weather of a city",
        {"city": _STRING, "days": _INTEGER},
        {"city": _name, "days": _integer(1, 14)},
        (
            "What will the weather be in {city} in {days} days?",
            "Give me the weather for {city} in {days} days.",
            "Weather in {city}, {days} days from now?",
        ),
        ("How will the weather be in {city} in {days} days?",),
        {"sky": _one_of(_SKIES), "temperature": _integer(1, 39)},
        "In {city} it will be {sky}, {temperature} degrees.",
        (
            "Tell me the weather in {city} in {days} days.",
            "Please check the weather of {city}, {days} days ahead.",
            "Will it rain in {city} in {days} days?",
            "Please say what {city} has to expect in {days} days.",
        ),
    ),
    Tool(
        "set_alarm",
        "Set an alarm",
        {"hour": _INTEGER, "minute": _INTEGER},
        {"hour": _integer(0, 23), "minute": _integer(10, 59)},
        (
            "Set an alarm for {hour}:{minute}.",
            "Please wake me at {hour}:{minute}.",
            "I need an alarm at {hour}:{minute}.",
        ),
        ("Set my alarm at {hour}:{minute}, please.",),
        {"number": _integer(1, 99)},
        "Alarm {number} is set for {hour}:{minute}.",
        (
            "Alarm at {hour}:{minute}.",
            "My alarm should ring at {hour}:{minute}.",
            "Set one more alarm: {hour}:{minute}.",
            "Wake me up at {hour}:{minute}, please.",
        ),
    ),
    Tool(
        "book_table",
        "Book a table at a restaurant",
        {"restaurant": _STRING, "people": _INTEGER, "outdoor": _BOOLEAN},
        {"restaurant": _name, "people": _integer(2, 9), "outdoor": _boolean},
        (
            "Book a table for {people} at {restaurant}, {outdoor}.",
            "I want a table at {restaurant} for {people}, {outdoor}.",
            "Get us a table {outdoor} for {people} at {restaurant}.",
        ),
        ("Please book {restaurant} for {people}, {outdoor}.",),
        {"hour": _integer(17, 22)},
        "Your table at {restaurant} is booked for {hour}:00.",
        (
            "Please reserve a table for {people} at {restaurant}, {outdoor}.",
            "Book {restaurant}: {people} people, {outdoor}.",
            "We are {people} and want to eat at {restaurant}, {outdoor}.",
            "Please get a table at {restaurant}, {outdoor}, for {people}.",
        ),
    ),
    Tool(
        "play_music",
        "Play an artist's music",
        {"artist": _STRING, "volume": _INTEGER, "shuffle": _BOOLEAN},
        {"artist": _name, "volume": _integer(1, 99), "shuffle": _boolean},
        (
            "Play {artist} at volume {volume}, {shuffle}.",
            "I want to hear {artist} {shuffle} at volume {volume}.",
            "Music by {artist}, volume {volume}, {shuffle}.",
        ),
        ("Please play {artist}, {shuffle}, at volume {volume}.",),
        {"song": _name},
        "Now playing {song} by {artist}.",
        (
            "Please put on {artist}, {shuffle}, volume {volume}.",
            "Play some {artist} {shuffle} at volume {volume}.",
            "Can you play {artist}? Volume {volume}, {shuffle}.",
            "Please let me hear {artist}, {shuffle}, at {volume}.",
        ),
    ),
    Tool(
        "send_message",
        "Send a message to a person",
        {"recipient": _STRING, "text": _STRING},
        {
            "recipient": _name,
            "text": lambda random, held_out: (
                f"We meet {_DAYS[int(random.integers(7))]} in the {invented.choice(random, _ROOMS)}"
            ),
        },
        ("Tell {recipient}: {text}.", "Send {recipient} a message: {text}.", "Write to {recipient}: {text}."),
        ("Send this to {recipient}: {text}.",),
        {"number": _integer(1, 99)},
        "Message {number} was sent to {recipient}.",
        (
            "Please write this to {recipient}: {text}.",
            "Message for {recipient}: {text}.",
            "Send a note to {recipient}: {text}.",
            "Please tell {recipient} this: {text}.",
        ),
    ),
    Tool(
        "find_flights",
        "Find flights between two cities",
        {"origin": _STRING, "destination": _STRING, "direct": _BOOLEAN},
        {"origin": _name, "destination": _name, "direct": _boolean},
        (
            "Find flights from {origin} to {destination}, {direct}.",
            "I want to fly from {origin} to {destination}, {direct}.",
            "Which flights go to {destination} from {origin}, {direct}?",
        ),
        ("Please find a flight to {destination} from {origin}, {direct}.",),
        {"airline": _name, "price": _integer(50, 990)},
        "{airline} flies to {destination} for {price}.",
        (
            "Please show flights from {origin} to {destination}, {direct}.",
            "A flight to {destination}, from {origin}, {direct}, please.",
            "How can I fly to {destination} from {origin}, {direct}?",
            "Find me a flight {direct} from {origin} to {destination}.",
        ),
    ),
    Tool(
        "create_event",
        "Add an event to the calendar",
        {"title": _STRING, "day": {"type": "string", "enum": list(_DAYS)}, "hours": _NUMBER},
        {"title": _name, "day": _one_of(_DAYS), "hours": _decimal(1, 9)},
        (
            "Add {title} on {day} for {hours} hours.",
            "On {day} I have {title} for {hours} hours, add it.",
            "Create an event on {day}: {title}, {hours} hours.",
        ),
        ("Please create {title} for {hours} hours on {day}.",),
        {"number": _integer(1, 99)},
        "{title} is event {number}, on {day}.",
        (
            "Please add {title} to {day}, {hours} hours.",
            "Put {title} on {day}: {hours} hours.",
            "New event: {title}, {hours} hours on {day}.",
            "Please make an event of {hours} hours on {day}, called {title}.",
        ),
    ),
    Tool(
        "set_light",
        "Change the light of a room",
        {"room": {"type": "string", "enum": list(_ROOMS)}, "brightness": _INTEGER},
        {"room": _one_of(_ROOMS), "brightness": _integer(0, 99)},
        (
            "Set the {room} light to {brightness}.",
            "Light in the {room} at {brightness}, please.",
            "I want the {room} at brightness {brightness}.",
        ),
        ("Please set the light of the {room} to {brightness}.",),
        {"watts": _integer(1, 60)},
        "The {room} light is at {brightness} and uses {watts} watts.",
        (
            "Please make the {room} light {brightness}.",
            "Turn the light of the {room} to {brightness}.",
            "The {room} light should be {brightness}.",
            "Please put the {room} at {brightness}.",
        ),
    ),
    Tool(
        "convert_money",
        "Convert an amount of money",
        {"amount": _NUMBER, "source": _STRING, "target": _STRING},
        {"amount": _decimal(1, 99), "source": _one_of(("EUR", "USD", "GBP")), "target": _one_of(("JPY", "CNY", "INR"))},
        (
            "Convert {amount} {source} to {target}.",
            "How much is {amount} {source} in {target}?",
            "{amount} {source} in {target}, please.",
        ),
        ("What is {amount} {source} in {target}?",),
        {"result": _decimal(1, 999)},
        "{amount} {source} is {result} {target}.",
        (
            "Please convert {amount} {source} to {target}.",
            "What do I get in {target} for {amount} {source}?",
            "Change {amount} {source} into {target}.",
            "What are {amount} {source} worth in {target}?",
        ),
    ),
    Tool(
        "order_food",
        "Order dishes to a table",
        {"dishes": {"type": "array", "items": _STRING}, "table": _INTEGER},
        {"dishes": _some_of(_DISHES), "table": _integer(1, 40)},
        ("Order {dishes} for table {table}.", "Table {table} wants {dishes}.", "Bring {dishes} to table {table}."),
        ("Please order {dishes} to table {table}.",),
        {"minutes": _integer(5, 50)},
        "The order for table {table} takes {minutes} minutes.",
        (
            "Please bring {dishes} to table {table}.",
            "We want {dishes} at table {table}.",
            "Table {table}: {dishes}, please.",
            "Please, for table {table}, order {dishes}.",
        ),
    ),
    Tool(
        "find_books",
        "Find books of an author",
        {"author": _STRING, "limit": _INTEGER},
        {"author": _name, "limit": _integer(1, 20)},
        (
            "Find {limit} books by {author}.",
            "Which {limit} books did {author} write?",
            "Show {limit} books of {author}.",
        ),
        ("Please find {author}, {limit} books.",),
        {"first": _name, "count": _integer(1, 20)},
        "There are {count} books by {author}, the first is {first}.",
        (
            "Please show me {limit} books by {author}.",
            "Books by {author}, {limit} of them.",
            "What did {author} write? Show {limit} books.",
            "Please list {limit} books of {author}.",
        ),
    ),
    Tool(
        "get_stock",
        "How many pieces of an article a shop has",
        {"article": _STRING, "shop": _INTEGER},
        {"article": _name, "shop": _integer(100, 999)},
        (
            "How many {article} does shop {shop} have?",
            "Stock of {article} in shop {shop}?",
            "Is there any {article} in shop {shop}?",
        ),
        ("Does shop {shop} have {article}?",),
        {"pieces": _integer(0, 500)},
        "Shop {shop} has {pieces} pieces of {article}.",
        (
            "Please check {article} in shop {shop}.",
            "Does shop {shop} still sell {article}, and how many?",
            "Shop {shop}: how many {article}?",
            "Please ask shop {shop} for {article}.",
        ),
    ),
)
