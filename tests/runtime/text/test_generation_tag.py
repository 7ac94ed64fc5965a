"""The tags of training templates render as transformers renders them."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from qwonnx.runtime.errors import TemplateError
from qwonnx.runtime.text.chat_template import ChatTemplate

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": " a "}, {"role": "assistant", "content": "b\n"}]

TEMPLATES = (
    "{% for m in messages %}{{ m.role }}\n{% generation %}\n  {{ m.content }}!\n{% endgeneration %}\n{% endfor %}",
    "  {%- generation -%}  x  {%- endgeneration -%}  y",
    "{% generation %}{% generation %}x{% endgeneration %}{% endgeneration %}",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{% set n = namespace(x=1) %}{% generation %}{% set n.x = 2 %}{% endgeneration %}{{ n.x }}",
    "{% for m in messages %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}",
    "{% generation %}{{ '<b>' }}{% endgeneration %}{{ messages[0].content | trim }}",
    "{% macro say(x) %}{% generation %}{{ x }}{% endgeneration %}{% endmacro %}{{ say('z') | upper }}",
    "{% generation %}{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}"
    "{% endgeneration %}",
)


@pytest.mark.parametrize("source", TEMPLATES)
def test_the_tags_render_as_their_content(source: str) -> None:
    (expected,), _ = render_jinja_template([MESSAGES], chat_template=source)
    assert ChatTemplate(source).render(MESSAGES, add_generation_prompt=False) == expected


@pytest.mark.parametrize("source", ["{% generation %}x", "x{% endgeneration %}", "{% generation %}{% if %}"])
def test_tags_without_their_other_half_are_malformed(source: str) -> None:
    with pytest.raises(TemplateError, match="malformed"):
        ChatTemplate(source)
