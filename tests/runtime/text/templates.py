"""Chat templates under test: in the formats of Qwen 3.5 and 3.6, the miniature's, and other ways to write one."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import chat_template

_TRAINED = Path(__file__).parents[2] / "miniature" / "checkpoint" / "chat_template.jinja"


def qwen36_template() -> str:
    """Qwen 3.6's: reasoning may be preserved, and every argument that is not a string is JSON."""
    source = chat_template()
    for old, new in (
        ("if loop.index0 > last.question", "if loop.index0 > last.question or preserve_thinking is true"),
        ("if value is mapping or (value is sequence and value is not string)", "if value is not string"),
    ):
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


QWEN_TEMPLATES = {
    "Qwen 3.5": chat_template(),
    "Qwen 3.5, thinking off by default": chat_template(thinks_by_default=False),
    "Qwen 3.6": qwen36_template(),
    "miniature": _TRAINED.read_text(encoding="utf-8"),
}

# Each writes a turn with another of Jinja's means; the text is the same for all.
STYLES = {
    "plain output": "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n",
    "one expression": "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}",
    "tilde": "{{ '<|im_start|>' ~ message['role'] ~ '\n' ~ message['content'] ~ '<|im_end|>\n' }}",
    "percent": "{{ '<|im_start|>%s\n%s<|im_end|>\n' % (message.role, message.content) }}",
    "percent with names": "{{ '<|im_start|>%(role)s\n%(content)s<|im_end|>\n' % message }}",
    "format filter": "{{ '<|im_start|>%s\n%s<|im_end|>\n' | format(message.role, message.content) }}",
    "format method": "{{ '<|im_start|>{}\n{}<|im_end|>\n'.format(message.role, message.content) }}",
    "format map": "{{ '<|im_start|>{role}\n{content}<|im_end|>\n'.format_map(message) }}",
    "join filter": "{{ ['<|im_start|>', message.role, '\n', message.content, '<|im_end|>\n'] | join }}",
    "join method": "{{ '\n'.join(['<|im_start|>' + message.role, message.content + '<|im_end|>', '']) }}",
    "replace filter": "{{ '<|im_start|>@\n' | replace('@', message.role) }}{{ message.content }}{{ '<|im_end|>\n' }}",
    "replace method": "{{ '<|im_start|>@\n'.replace('@', message.role) + message.content + '<|im_end|>\n' }}",
    "macro": "{% macro turn(a, b) %}<|im_start|>{{ a }}\n{{ b }}<|im_end|>\n{% endmacro %}"
    "{{ turn(message.role, message.content) }}",
    "caller": "{% macro turn() %}<|im_start|>{{ caller() }}<|im_end|>\n{% endmacro %}"
    "{% call turn() %}{{ message.role }}\n{{ message.content }}{% endcall %}",
    "set block": "{% set turn %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endset %}"
    "{{ turn }}",
    "trimmed": "{{ ('  <|im_start|>' + message.role + '\n' + message.content + '<|im_end|>  ') | trim }}{{ '\n' }}",
    "slices": "{{ ('..<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n..')[2:-2] }}",
    "characters": "{% for c in '<|im_start|>' + message.role %}{{ c }}{% endfor %}{{ '\n' + message.content }}"
    "{{ '<|im_end|>' | list | join }}{{ '\n' }}",
    "namespace": "{% set ns = namespace(t='<|im_start|>') %}{% set ns.t = ns.t + message.role + '\n' %}"
    "{% set ns.t = ns.t + message.content %}{{ ns.t }}<|im_end|>\n",
    "filter block": "{% filter replace('[', '<|') | replace(']', '|>') %}[im_start]{% endfilter %}{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n",
    "dictionary": "{% set marks = {'open': '<|im_start|>', 'close': '<|im_end|>'} %}"
    "{{ marks.open }}{{ message.role }}\n{{ message.content }}{{ marks['close'] }}\n",
    "split": "{{ '<|im_start|>*<|im_end|>'.split('*') | first }}{{ message.role }}\n{{ message.content }}"
    "{{ '<|im_start|>*<|im_end|>'.partition('*')[2] }}\n",
    "lower case": "{{ '<|IM_START|>' | lower }}{{ message.role }}\n{{ message.content }}{{ '<|IM_END|>'.lower() }}\n",
    "safe": "{{ ('<|im_start|>' + message.role) | safe }}\n{{ message.content | safe }}{{ '<|im_end|>' | safe }}\n",
    "indented": "{{ ('<|im_start|>' + message.role) | indent }}\n{{ message.content }}{{ '<|im_end|>\n' }}",
    "role in the token": "{{ '<|im_' ~ {'user': 'start', 'assistant': 'start'}[message.role] ~ '|>' ~ message.role }}\n"
    "{{ message.content }}<|im_end|>\n",
}


def in_style(name: str) -> str:
    """A whole template whose turns are written in this way."""
    return "{% for message in messages %}" + STYLES[name] + "{% endfor %}{{ '<|im_start|>assistant\n' }}"
