"""The Jinja environment of chat templates: transformers' one, sandboxed, and every text knows who wrote it.

Constants of a template's source become TemplateText (template_text.py); values that it is given stay as they are. Jinja
joins texts in four places: output, the ~ operator, the blocks that it captures, and filters. All of them keep the spans
here. What is not known here makes a plain str, which counts as text of the request.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable
from string import Formatter
from types import BuiltinMethodType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import loopcontrols
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import pass_environment, pass_eval_context

from qwonnx.runtime.text.generation_tag import GenerationTag
from qwonnx.runtime.text.template_text import (
    TemplateMarkup,
    TemplateText,
    in_other_case,
    is_own,
    joined,
    own,
    plain,
    verified,
)

# Methods of str whose result contains an argument: of a plain str they would return it as a plain str.
_TAKES_IN = frozenset({"replace", "join", "center", "ljust", "rjust"})
# Methods of str that return their argument where the text has it.
_RETURNS_ARGUMENT = frozenset({"partition", "rpartition"})


class _CodeGenerator(CodeGenerator):
    """Writes a template's constants as its own text. (Jinja's native templates change the same methods.)"""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(f"environment.own({value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_TemplateData(node, frame)
        else:
            self.write(f"environment.own({node.data!r})")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)
            return
        self.write("environment.written_together((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.own({''.join(map(str, group))!r})"


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """What transformers gives to a template: whitespace rules, `tojson`, `raise_exception`, `strftime_now`, loops."""

    code_generator_class = _CodeGenerator
    concat = staticmethod(joined)

    def __init__(self) -> None:
        # The optimizer would make one constant of several: the code generator has to see each text.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag], optimized=False
        )
        self._constants: dict[str, TemplateText] = {}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.filters.update(
            tojson=_tojson, replace=_replace, join=_join, format=_format, indent=_indent, title=_title, safe=_safe
        )

    def own(self, text: str) -> TemplateText:
        """A constant of the template's source."""
        known = self._constants.get(text)
        if known is None:
            known = self._constants[text] = own(text)
        return known

    def written_together(self, values: Iterable[Any]) -> str:
        """The values of a ~ expression as one text."""
        return joined(map(str, values))

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(function, BuiltinMethodType) and type(function.__self__) is str:
            if function.__name__ in _TAKES_IN:
                function = getattr(_tracked(function.__self__), function.__name__)
            elif function.__name__ in _RETURNS_ARGUMENT:
                args = tuple(plain(value) if isinstance(value, str) else value for value in args)
        return super().call(context, function, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatted = super().wrap_str_format(value)
        pattern = getattr(value, "__self__", None)
        if formatted is None or not isinstance(pattern, TemplateText):
            return formatted

        def with_spans(*args: Any, **kwargs: Any) -> str:
            whole = plain(formatted(*args, **kwargs))
            if not is_own(pattern):
                return whole
            named = args[0] if value.__name__ == "format_map" else kwargs
            return verified(whole, lambda: _formatted(SandboxedFormatter(self), pattern, args, named))

        return with_spans


def _formatted(formatter: Formatter, pattern: TemplateText, args: Any, kwargs: Any) -> Iterable[str]:
    """The parts of `pattern.format(...)`: the pattern's own text, and the values."""
    number = 0
    for literal, field, form, conversion in formatter.parse(pattern):
        yield own(literal)
        if field is None:
            continue
        if not field or field[0] in ".[":
            field, number = f"{number}{field}", number + 1
        value, _ = formatter.get_field(field, args, kwargs)
        if isinstance(value, TemplateText) and not form and conversion in (None, "s"):
            yield value
        else:
            value = formatter.convert_field(value, conversion)
            yield plain(formatter.format_field(value, formatter.vformat(form or "", args, kwargs)))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which would change the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@pass_eval_context
def _replace(context: EvalContext, text: str, old: str, new: str, count: int | None = None) -> str:
    if context.autoescape:
        return str(FILTERS["replace"](context, text, old, new, count))
    return _tracked(str(text)).replace(str(old), str(new), -1 if count is None else count)


@pass_eval_context
def _join(context: EvalContext, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> Any:
    if context.autoescape:
        return FILTERS["join"](context, values, d, attribute)
    if attribute is not None:
        values = map(make_attrgetter(context.environment, attribute), values)
    return _tracked(str(d)).join(map(str, values))


def _format(pattern: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise jinja2.TemplateRuntimeError("the filter format takes positional or keyword values, not both")
    text = pattern if isinstance(pattern, str) else str(pattern)
    made: str = text % (kwargs or args)
    return made


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if hasattr(text, "__html__"):
        return str(FILTERS["indent"](text, width, first, blank))
    margin = width if isinstance(width, str) else " " * width
    ended = joined((text, "\n"))  # so the last line counts, even if it is empty
    lines = ended.splitlines()
    made = [lines[0], *(joined((margin, line)) if line or blank else line for line in lines[1:])]
    return joined((margin if first else "", TemplateText("\n").join(made)))


@pass_environment
def _title(environment: jinja2.Environment, text: Any) -> str:
    return in_other_case(str(text), FILTERS["title"])


def _safe(text: Any) -> Any:
    return TemplateMarkup.of(text) if isinstance(text, TemplateText) else FILTERS["safe"](text)


def _tracked(text: str) -> TemplateText:
    return text if isinstance(text, TemplateText) else TemplateText(text)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(plain(message) if isinstance(message, str) else message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
