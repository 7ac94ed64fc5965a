"""The JSON types that a JSON schema allows for a value, and for a named property of an object.

Clients write the schemas, so the work is bounded: every place of a schema is looked at once, a reader has a budget of
places, and keys are matched only against patterns that take little time. What a reader does not find out says nothing.
Types are those of JSON Schema; of its keywords only those count that decide a type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from msgspec import Struct

from qwonnx.runtime.errors import InvalidRequestError

MAX_VALUES = 50_000  # of a schema, counted with all that it contains
MAX_PLACES = 10_000  # that one reader looks at: less than 0.1 s
_MAX_DEPTH = 100  # of references and combinations within each other

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_ONE_OF_THEM = ("anyOf", "oneOf")
# Keywords that a schema without `type` has for values of one type.
_KEYWORDS: Mapping[str, frozenset[str]] = {
    kind: frozenset(keywords.split())
    for kind, keywords in {
        "object": """properties required additionalProperties patternProperties propertyNames minProperties
            maxProperties dependentRequired dependentSchemas unevaluatedProperties""",
        "array": "items prefixItems additionalItems contains minItems maxItems uniqueItems unevaluatedItems",
        "string": "minLength maxLength pattern format",
        "number": "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf",
    }.items()
}


class Allowed(Struct, frozen=True):
    """What a schema allows.

    types: names of JSON Schema.
    texts: the strings that it lists (enum, const); empty if it lists none.
    """

    types: frozenset[str]
    texts: frozenset[str] = frozenset()


# A schema that says nothing: the model writes text, or JSON that no text looks like by chance.
FREE = Allowed(frozenset({"string", "array", "object"}))
TEXT = Allowed(frozenset({"string"}))


class _Found(Struct, frozen=True):
    """What a schema says about a property; allowed is None if that is nothing."""

    allowed: Allowed | None


class SchemaReader:
    """Reads the types of one document, within one budget.

    Args:
        root: the document, to which references lead.
        nullable: OpenAPI 3.0's `nullable: true` adds null.
        places: the budget.
    """

    def __init__(self, root: Mapping[str, Any], *, nullable: bool = True, places: int = MAX_PLACES) -> None:
        self._root = root
        self._nullable = nullable
        self._places = places
        self._known: dict[int, Allowed | None] = {}  # by id() of a schema; the document outlives the reader
        self._open: set[int] = set()
        self._met_itself = False
        self._of_key: dict[int, _Found | None] = {}  # of the present property, by id() of a schema
        self._anchors: dict[str, Any] | None = None

    def allowed(self, schema: Any) -> Allowed | None:
        """What a schema of the document allows; None if it says nothing."""
        if not isinstance(schema, Mapping):
            return None
        place = id(schema)
        if place in self._known:
            return self._known[place]
        if place in self._open:
            self._met_itself = True
            return None
        if not self._enter(place):
            return None
        outer, self._met_itself = self._met_itself, False
        found = self._combined(schema)
        if self._nullable and found is not None and schema.get("nullable") is True:
            found = Allowed(found.types | {"null"}, found.texts)
        self._open.remove(place)
        # A schema that leads to itself says more when it is looked at from its own beginning.
        if not self._met_itself or not self._open:
            self._known[place] = found
        self._met_itself = outer or self._met_itself
        return found

    def of_property(self, key: str) -> Allowed:
        """What the document allows for a property of its objects."""
        self._met_itself = False
        self._of_key = {}
        found = self._property(self._root, key)
        if found is None:
            return TEXT
        return found.allowed or FREE

    def property_names(self) -> frozenset[str]:
        """Names of the properties that the document declares, in all of its combinations."""
        return frozenset(self._names(self._root))

    def target(self, reference: str) -> Any:
        """The schema to which a reference leads ("#/$defs/Name", "#name"), or None."""
        document, mark, fragment = reference.partition("#")
        if document and document != str(self._root.get("$id", "")).rstrip("#"):
            return None
        fragment = unquote(fragment)
        if not fragment:
            return self._root if mark or document else None
        if not fragment.startswith("/"):
            return self._anchored(fragment)
        place: Any = self._root
        for part in fragment[1:].split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(place, Mapping):
                place = place.get(name)
            elif isinstance(place, list) and name.isdecimal() and name.isascii() and len(name) < 9:
                place = place[int(name)] if int(name) < len(place) else None
            else:
                return None
        return place

    def _enter(self, place: int) -> bool:
        self._places -= 1
        if self._places < 0 or len(self._open) >= _MAX_DEPTH:
            return False
        self._open.add(place)
        return True

    def _affordable(self, parts: list[Any]) -> list[Any]:
        return parts[: max(0, self._places)]

    def _combined(self, schema: Mapping[str, Any]) -> Allowed | None:
        said = _declared(schema)
        for part in self._all_of(schema):
            said = _both(said, self.allowed(part))
        for keyword in _ONE_OF_THEM:
            if isinstance(choices := schema.get(keyword), list):
                said = _both(said, _either(self.allowed(choice) for choice in self._affordable(choices)))
        if said is not None:
            return said
        types = frozenset(kind for kind, keywords in _KEYWORDS.items() if not keywords.isdisjoint(schema))
        return Allowed(types) if types else None

    def _all_of(self, schema: Mapping[str, Any]) -> Iterator[Any]:
        """The schemas that hold together with this one."""
        for keyword in _REFERENCES:
            if isinstance(reference := schema.get(keyword), str):
                yield self.target(reference)
        if isinstance(parts := schema.get("allOf"), list):
            yield from self._affordable(parts)

    def _any_of(self, schema: Mapping[str, Any]) -> Iterator[Any]:
        """The schemas of which some hold together with this one."""
        for keyword in _ONE_OF_THEM:
            if isinstance(choices := schema.get(keyword), list):
                yield from self._affordable(choices)
        yield from (schema[keyword] for keyword in ("then", "else") if keyword in schema)

    def _property(self, schema: Any, key: str) -> _Found | None:
        if not isinstance(schema, Mapping):
            return None
        if id(schema) in self._of_key:
            return self._of_key[id(schema)]
        if not self._enter(id(schema)):
            return None
        self._of_key[id(schema)] = None  # one that leads to itself adds nothing
        found = self._own_property(schema, key)
        for part in self._all_of(schema):
            other = self._property(part, key)
            found = found or other if not (found and other) else _Found(_both(found.allowed, other.allowed))
        choices = [choice for part in self._any_of(schema) if (choice := self._property(part, key)) is not None]
        if choices:
            allowed = _either(choice.allowed for choice in choices)
            found = _Found(allowed if found is None else _both(found.allowed, allowed))
        self._open.remove(id(schema))
        self._of_key[id(schema)] = found
        return found

    def _own_property(self, schema: Mapping[str, Any], key: str) -> _Found | None:
        properties, patterns = schema.get("properties"), schema.get("patternProperties")
        found: _Found | None = None
        if isinstance(properties, Mapping) and isinstance(properties.get(key), (Mapping, bool)):
            found = _Found(self.allowed(properties[key]))
        for pattern, inner in patterns.items() if isinstance(patterns, Mapping) else ():
            self._places -= _COST_OF_SLOW if len(_REPEATS.findall(pattern)) > 1 else _COST_OF_PATTERN
            if self._places < 0:
                break
            matches = key_matches(pattern, key)
            if matches is not False:
                said = self.allowed(inner)
                if matches is None and said is not None:
                    said = Allowed(said.types | {"string"})
                found = _Found(said if found is None else _both(found.allowed, said))
        if found is None:
            others = schema.get("additionalProperties", schema.get("unevaluatedProperties"))
            found = _Found(self.allowed(others)) if isinstance(others, Mapping) else None
        return found

    def _names(self, schema: Any) -> set[str]:
        names: set[str] = set()
        pending, seen = [schema], set()
        while pending and self._places > 0:
            self._places -= 1
            part = pending.pop()
            if isinstance(part, Mapping) and id(part) not in seen:
                seen.add(id(part))
                if isinstance(properties := part.get("properties"), Mapping):
                    names.update(properties)
                pending += [*self._all_of(part), *self._any_of(part)]
        return names

    def _anchored(self, name: str) -> Any:
        if self._anchors is None:
            self._anchors = {}
            for part in _parts(self._root):
                self._places -= 1
                if self._places < 0:
                    break
                for keyword in ("$anchor", "$dynamicAnchor", "$id", "id"):
                    if isinstance(anchor := part.get(keyword), str):
                        self._anchors.setdefault(anchor.removeprefix("#"), part)
        return self._anchors.get(name)


def check_size(schema: Any, where: str) -> None:
    """Check that a schema is small enough to be read.

    Raises:
        InvalidRequestError: it has too many values; `where` as param.
    """
    count, pending = 1, [schema]
    while pending and count <= MAX_VALUES:
        part = pending.pop()
        if isinstance(part, (Mapping, list)):
            count += len(part)
            pending.extend(part.values() if isinstance(part, Mapping) else part)
    if count > MAX_VALUES:
        raise InvalidRequestError(f"{where} has more than {MAX_VALUES:,} values: send a smaller schema", where)


def _parts(document: Any) -> Iterator[Mapping[str, Any]]:
    pending = [document]
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            yield part
            pending.extend(part.values())
        elif isinstance(part, list):
            pending.extend(part)


def _declared(schema: Mapping[str, Any]) -> Allowed | None:
    """What `type`, `enum` and `const` say."""
    listed = schema.get("enum")
    values = listed if isinstance(listed, list) else [schema["const"]] if "const" in schema else None
    texts = frozenset(value for value in values or () if isinstance(value, str))
    declared = schema.get("type")
    names = [declared] if isinstance(declared, str) else declared
    if isinstance(names, list):
        return Allowed(frozenset(name for name in names if isinstance(name, str)), texts)
    return None if values is None else Allowed(frozenset(map(type_of, values)), texts)


def _both(one: Allowed | None, other: Allowed | None) -> Allowed | None:
    """What two schemas together allow. If they contradict each other, the first one counts."""
    if one is None or other is None:
        return one or other
    types = one.types & other.types
    for these, those in ((one.types, other.types), (other.types, one.types)):
        if "integer" in these and "number" in those:
            types |= {"integer"}
    texts = one.texts & other.texts if one.texts and other.texts else one.texts | other.texts
    return Allowed(types, texts) if types else one


def _either(choices: Iterable[Allowed | None]) -> Allowed | None:
    """What one of several schemas allows."""
    said = list(choices)
    if all(choice is None for choice in said):
        return None
    known = [choice or FREE for choice in said]
    return Allowed(
        frozenset().union(*(choice.types for choice in known)), frozenset().union(*(choice.texts for choice in known))
    )


def type_of(value: Any) -> str:
    """JSON Schema's name for a parsed value's type."""
    if isinstance(value, bool):
        return "boolean"
    names = {dict: "object", list: "array", str: "string", int: "integer", float: "number"}
    return names.get(type(value), "null")


# Patterns that are tried: characters, classes, escapes, groups of alternatives. Each choice multiplies the time of
# Python's engine, so they are few; then a key takes some thousand steps at most.
_PATTERN_PART = re.compile(
    r"""(?P<atom>[^\\\[\](){}*+?|^$.\n]|\\[dDwWsS]|\\[^\w\n]|\.|\[\^?(?:[\w :/@.$+,;=~!#%-]|\\[dDwWsS]|\\[^\w\n])+\])
    |(?P<repeat>[*+]\??|\{\d{1,2},\d{0,2}\}\??)|(?P<times>\{\d{1,2}\})|(?P<choice>\?\??|\|)
    |(?P<open>\((?:\?:|(?!\?)))|(?P<close>\))|(?P<start>\^)|(?P<end>\$)""",
    re.VERBOSE | re.ASCII,
)
_REPEATS = re.compile(r"[*+{]")
_COST_OF_PATTERN, _COST_OF_SLOW = 50, 1000  # in places; compiling takes 0.3 ms, two repeats up to 3 ms
_MAX_PATTERN, _MAX_KEY, _MAX_REPEATS, _MAX_CHOICES = 256, 128, 2, 6


def key_matches(pattern: str, key: str) -> bool | None:
    """Whether a pattern of patternProperties matches a key; None if it is not tried."""
    if len(pattern) > _MAX_PATTERN or len(key) > _MAX_KEY:
        return None
    translated, place, repeats, choices, after = "", 0, 0, 0, "start"
    while place < len(pattern):
        part = _PATTERN_PART.match(pattern, place)
        if part is None:
            return None
        kind = part.lastgroup or ""
        repeats += kind == "repeat"
        choices += kind in ("repeat", "choice")
        if kind in ("repeat", "times") and after != "atom":
            return None  # a repeated group may take exponential time
        translated += r"\Z" if kind == "end" else part[0]
        after, place = kind, part.end()
    if repeats > _MAX_REPEATS or choices > _MAX_CHOICES:
        return None
    try:
        return re.search(translated, key, re.ASCII) is not None
    except (re.error, OverflowError):
        return None
