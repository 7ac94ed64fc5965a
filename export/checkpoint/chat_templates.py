"""The chat template of an artifact: the one that transformers would render, from wherever a checkpoint keeps it.

    chat_template.jinja, additional_chat_templates/NAME.jinja    if any of these exists, the next one is not looked at
    tokenizer_config.json: chat_template                         a template, or a list of named ones
    chat_template.json, processor_config.json                    of processors; last

transformers renders `tool_use` when a request has tools, and else `default`. It gives a template the special tokens by
name. An artifact has one template without either, so they are written into it; a template that needs neither is copied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.ext import loopcontrols

from qwonnx.export.checkpoint.tokenizer_files import CONFIG_FILE, read_config, read_text_file, special_names, unusable
from qwonnx.runtime.artifact.file_names import CHAT_TEMPLATE_FILE
from qwonnx.runtime.artifact.strict_json import StrictJsonError, parse_object, quoted
from qwonnx.runtime.errors import TemplateError
from qwonnx.runtime.text.chat_template import ChatTemplate
from qwonnx.runtime.text.generation_tag import GenerationTag

_FOLDER = "additional_chat_templates"
_LEGACY_FILES = ("chat_template.json", "processor_config.json")
_DEFAULT, _TOOLS = "default", "tool_use"
_MAX_BYTES = 4 << 20
_MAX_TEMPLATES = 64
_ENVIRONMENT = jinja2.Environment(extensions=[loopcontrols, GenerationTag])


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """The text of an artifact's chat_template.jinja, None without one, and notes for display."""

    text: str | None
    notes: tuple[str, ...] = ()


NO_TEMPLATE = TemplateSource(None, ("chat template: none is there, so the artifact answers prompts and not chats",))


@dataclass(frozen=True, slots=True)
class _Templates:
    """Templates by name, and the file or folder that they are from."""

    by_name: Mapping[str, str]
    path: Path


def chat_template_source(folder: Path) -> TemplateSource:
    """The chat template of a checkpoint's folder.

    Raises:
        CheckpointError: a file cannot be read, or a template that would be rendered is not Jinja.
    """
    legacy = next((found for name in _LEGACY_FILES if (found := _from_legacy_file(folder / name))), None)
    templates = _from_files(folder) or _from_tokenizer_config(folder) or legacy
    if templates is None:
        return NO_TEMPLATE
    notes = []
    if templates.path != folder / CHAT_TEMPLATE_FILE:
        notes.append(f"chat template: from {templates.path.name}")
    if templates.path.name == _FOLDER and _DEFAULT not in templates.by_name and _from_tokenizer_config(folder):
        notes.append(f"chat template: that of {CONFIG_FILE} is not used, because {_FOLDER} replaces all of it")
    if legacy is not None and legacy.by_name != templates.by_name:
        notes.append(
            f"chat template: {legacy.path.name} differs, and only AutoProcessor reads it: {templates.path.name} is used"
        )
    source = rendered_template(templates.by_name, templates.path, special_names(folder))
    return TemplateSource(source.text, (*notes, *source.notes))


def rendered_template(by_name: Mapping[str, str], path: Path, special: Mapping[str, str]) -> TemplateSource:
    """One template of those that a checkpoint has by name.

    Args:
        by_name: the templates.
        path: of the file that has them, for errors.
        special: special tokens by the names under which transformers gives them to a template.

    Raises:
        CheckpointError: a template that would be rendered is not Jinja.
    """
    notes = []
    rendered = [name for name in (_DEFAULT, _TOOLS) if name in by_name]
    others = [name for name in by_name if name not in rendered]
    if not rendered:
        shown = ", ".join(map(quoted, others[:3]))
        notes.append(f"chat template: none is used, because none is named {_DEFAULT} ({shown})")
        return TemplateSource(None, tuple(notes))
    if others:
        notes.append(f"chat template: only {_DEFAULT} and {_TOOLS} are used, not {', '.join(map(quoted, others[:3]))}")
    used: set[str] = set()
    for name in rendered:
        try:
            ChatTemplate(by_name[name])
        except TemplateError as error:
            raise unusable(path, quoted(str(error))) from error
        used |= meta.find_undeclared_variables(_ENVIRONMENT.parse(by_name[name]))
    text = _joined(by_name)
    written = {name: token for name, token in sorted(special.items()) if name in used}
    if written:
        notes.append(f"chat template: it reads {', '.join(written)}, which are written into it")
    return TemplateSource(_prelude(written) + text, tuple(notes))


def _from_files(folder: Path) -> _Templates | None:
    single, named = folder / CHAT_TEMPLATE_FILE, folder / _FOLDER
    found = {_DEFAULT: single} if single.is_file() else {}
    if named.is_dir():
        paths = [path for path in sorted(named.glob("*.jinja")) if path.is_file()]
        found |= {path.name.removesuffix(".jinja"): path for path in paths[:_MAX_TEMPLATES]}
    if not found:
        return None
    return _Templates(
        {name: _text(path) for name, path in found.items()}, single if found.keys() == {_DEFAULT} else named
    )


def _text(path: Path) -> str:
    try:
        return read_text_file(path, _MAX_BYTES).decode()
    except UnicodeDecodeError as error:
        raise unusable(path, str(error)) from error


def _from_tokenizer_config(folder: Path) -> _Templates | None:
    return _named(folder / CONFIG_FILE, read_config(folder).get("chat_template"))


def _from_legacy_file(path: Path) -> _Templates | None:
    if not path.is_file():
        return None
    try:
        return _named(path, parse_object(read_text_file(path, _MAX_BYTES)).get("chat_template"))
    except StrictJsonError as error:
        raise unusable(path, str(error)) from error


def _named(path: Path, value: Any) -> _Templates | None:
    """Templates as a JSON file has them: one text, a list of objects with name and template, or texts by name."""
    if value is None or value == "" or value == []:
        return None
    if isinstance(value, str):
        return _Templates({_DEFAULT: value}, path)
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        value = {one.get("name"): one.get("template") for one in value}
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise unusable(path, "its chat_template is neither a text nor a list of named ones")
    return _Templates(value, path)


def _joined(by_name: Mapping[str, str]) -> str:
    """One template that chooses as transformers does."""
    if _TOOLS not in by_name:
        return by_name[_DEFAULT]
    missing = "{{ raise_exception('the model has a chat template for tools, and none for requests without tools') }}"
    with_tools, without = (_within(text) for text in (by_name[_TOOLS], by_name.get(_DEFAULT, missing)))
    # The signs keep blanks and line breaks at the ends of the templates, which the environment would trim.
    return "{%+ if tools is not none +%}" + with_tools + "{%+ else +%}" + without + "{%+ endif +%}"


def _within(text: str) -> str:
    """A template as a part of another; at its end Jinja drops one line break."""
    for ending in ("\r\n", "\n", "\r"):
        if text.endswith(ending):
            return text.removesuffix(ending)
    return text


def _prelude(special: Mapping[str, str]) -> str:
    """Sets special tokens, unless a request gives them."""
    return "".join(
        f"{{%+ if {name} is undefined +%}}{{%+ set {name} = {json.dumps(token, ensure_ascii=False)} +%}}{{%+ endif +%}}"
        for name, token in special.items()
    )
