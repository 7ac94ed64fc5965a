"""The tags `{% generation %}` and `{% endgeneration %}` of training templates: they render as their content.

Trainers put them around the assistant's text, to learn from that alone. As in transformers, the content is a scope of
its own: a variable that is set there is not seen after it.
"""

from __future__ import annotations

from collections.abc import Callable

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser


class GenerationTag(Extension):
    """Jinja's extension for the two tags."""

    tags = {"generation"}  # noqa: RUF012 - declared by the base class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        content = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], content, lineno=line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()
