"""Twelve tools with parameters of every JSON type: their definitions, phrasings of requests, and answers.

The file is longer than most, because it is a table of sentences, sorted by tool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.miniature import invented
from infra.miniature.conversation import Json

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SKIES = ("sunny", "cloudy", "rainy", "windy")
_ROOMS = ("kitchen", "bedroom", "garden", "office")
_DISHES = ("soup", "rice", "bread", "salad", "pasta", "tea")

# Frames that make a request of an imperative clause; the commonest is here twice, and is drawn twice as often.
_FRAMES: tuple[Callable[[str], str], ...] = (
    lambda clause: f"{_capitalised(clause)}.",
    lambda clause: f"{_capitalised(clause)}, please.",
    lambda clause: f"Please {clause}.",
    lambda clause: f"Please {clause}.",
    lambda clause: f"Can you {clause}?",
    lambda clause: f"I want you to {clause}.",
)

Values = dict[str, Any]
Draw = Callable[[np.random.Generator, Sequence[str]], Any]  # with the endings of invented names


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: its parameters as JSON schemas, draws of values and of a response, and sentences.

    `requests`, `variations` and `clauses` (which are used in every frame) are phrasings for training, `held_out` those
    for the test. All have parameters in braces; a boolean is said in words. `answer` may have parameters and fields of
    the response.
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
    clauses: tuple[str, ...]

    def phrasings(self) -> tuple[str, ...]:
        """All phrasings for training."""
        framed = (frame(clause) for clause in self.clauses for frame in _FRAMES)
        return (*self.requests, *self.variations, *framed)

    def definition(self) -> Json:
        parameters = {"type": "object", "properties": dict(self.schemas), "required": list(self.schemas)}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


def _capitalised(clause: str) -> str:
    return clause[0].upper() + clause[1:]


def _integer(low: int, high: int) -> Draw:
    return lambda random, endings: int(random.integers(low, high + 1))


def _decimal(low: int, high: int) -> Draw:
    # Hundredths that end in five: never a whole number, which JSON can write in two ways.
    return lambda random, endings: round(int(random.integers(low * 10, high * 10)) / 10 + 0.05, 2)


def _boolean(random: np.random.Generator, endings: Sequence[str]) -> bool:
    return bool(random.random() < 0.5)


def _name(random: np.random.Generator, endings: Sequence[str]) -> str:
    return invented.name(random, endings)


def _one_of(items: tuple[str, ...]) -> Draw:
    return lambda random, endings: invented.choice(random, items)


def _some_of(items: tuple[str, ...]) -> Draw:
    def draw(random: np.random.Generator, endings: Sequence[str]) -> list[str]:
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
        ("Will it rain in {city} in {days} days?",),
        (
            "tell me the weather in {city} in {days} days",
            "check the weather of {city}, {days} days ahead",
            "say what {city} has to expect in {days} days",
            "find out if {city} will be sunny in {days} days",
            "look up {city}, {days} days from now, will it rain",
            "show how warm {city} will be in {days} days",
            "give me the weather of {days} days ahead in {city}",
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
        ),
        (
            "set an alarm at {hour}:{minute}",
            "wake me up at {hour}:{minute}",
            "let the alarm ring at {hour}:{minute}",
            "put an alarm on {hour}:{minute}",
            "make the clock ring at {hour}:{minute}",
            "set one more alarm: {hour}:{minute}",
            "set the alarm clock to {hour}:{minute}",
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
            "Book {restaurant}: {people} people, {outdoor}.",
            "We are {people} and want to eat at {restaurant}, {outdoor}.",
        ),
        (
            "reserve a table for {people} at {restaurant}, {outdoor}",
            "book {restaurant}, {outdoor}, for {people}",
            "get a table at {restaurant}, {outdoor}, for {people}",
            "book {people} seats at {restaurant}, {outdoor}",
            "book a table {outdoor} at {restaurant} for {people}",
            "book something {outdoor} for {people}, at {restaurant}",
            "let {people} of us eat {outdoor} at {restaurant}",
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
        ("Can you play {artist}? Volume {volume}, {shuffle}.",),
        (
            "put on {artist}, {shuffle}, volume {volume}",
            "play some {artist} {shuffle} at volume {volume}",
            "let me hear {artist}, {shuffle}, at {volume}",
            "play music of {artist}, volume {volume}, {shuffle}",
            "play {artist}, {volume} loud, {shuffle}",
            "set the volume to {volume} and play {artist} {shuffle}",
            "play songs by {artist} at {volume}, {shuffle}",
        ),
    ),
    Tool(
        "send_message",
        "Send a message to a person",
        {"recipient": _STRING, "text": _STRING},
        {
            "recipient": _name,
            "text": lambda random, endings: (
                f"We meet {_DAYS[int(random.integers(7))]} in the {invented.choice(random, _ROOMS)}"
            ),
        },
        ("Tell {recipient}: {text}.", "Send {recipient} a message: {text}.", "Write to {recipient}: {text}."),
        ("Send this to {recipient}: {text}.",),
        {"number": _integer(1, 99)},
        "Message {number} was sent to {recipient}.",
        ("Message for {recipient}: {text}.",),
        (
            "write this to {recipient}: {text}",
            "send a note to {recipient}: {text}",
            "tell {recipient} this: {text}",
            "let {recipient} know: {text}",
            "send {recipient} this: {text}",
            "send to {recipient} the following: {text}",
            "give {recipient} this message: {text}",
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
            "A flight to {destination}, from {origin}, {direct}, please.",
            "How can I fly to {destination} from {origin}, {direct}?",
        ),
        (
            "show flights from {origin} to {destination}, {direct}",
            "find me a flight {direct} from {origin} to {destination}",
            "look for a flight to {destination}, {direct}, from {origin}",
            "find a way to fly to {destination} from {origin}, {direct}",
            "search flights to {destination}, leaving {origin}, {direct}",
            "find flights for {origin} to {destination} {direct}",
            "get me from {origin} to {destination} by plane, {direct}",
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
        ("New event: {title}, {hours} hours on {day}.",),
        (
            "add {title} to {day}, {hours} hours",
            "make an event of {hours} hours on {day}, called {title}",
            "put {title} on {day}: {hours} hours",
            "create {title}, {hours} hours, on {day}",
            "plan {hours} hours of {title} on {day}",
            "create a new event, {title}, for {day}, of {hours} hours",
            "keep {hours} hours free on {day} for {title}",
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
        ("The {room} light should be {brightness}.",),
        (
            "make the {room} light {brightness}",
            "turn the light of the {room} to {brightness}",
            "put the {room} at {brightness}",
            "set the lamp in the {room} to {brightness}",
            "change the light of the {room} to {brightness}",
            "give the {room} a light of {brightness}",
            "dim the {room} to {brightness}",
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
            "What do I get in {target} for {amount} {source}?",
            "What are {amount} {source} worth in {target}?",
        ),
        (
            "convert {amount} {source} to {target}",
            "change {amount} {source} into {target}",
            "tell me what {amount} {source} is in {target}",
            "say how much {target} is {amount} {source}",
            "calculate {amount} {source} in {target}",
            "turn {amount} {source} into {target}",
            "give me {amount} {source} as {target}",
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
            "We want {dishes} at table {table}.",
            "Table {table}: {dishes}, please.",
        ),
        (
            "bring {dishes} to table {table}",
            "order {dishes} at table {table}",
            "serve {dishes} at table {table}",
            "for table {table}, order {dishes}",
            "get table {table} some {dishes}",
            "send {dishes} to table {table}",
            "order for table {table}: {dishes}",
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
            "Books by {author}, {limit} of them.",
            "What did {author} write? Show {limit} books.",
        ),
        (
            "show me {limit} books by {author}",
            "list {limit} books of {author}",
            "find {author}, at most {limit} books",
            "look for {limit} books that {author} wrote",
            "find books by {author}, {limit} of them",
            "search for {author} and show {limit} books",
            "name {limit} books of {author}",
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
            "Does shop {shop} still sell {article}, and how many?",
            "Shop {shop}: how many {article}?",
        ),
        (
            "check {article} in shop {shop}",
            "ask shop {shop} for {article}",
            "find out how many {article} shop {shop} has",
            "see whether shop {shop} sells {article}",
            "count the {article} of shop {shop}",
            "look for {article} in shop {shop}",
            "tell me if {article} is left in shop {shop}",
        ),
    ),
)
