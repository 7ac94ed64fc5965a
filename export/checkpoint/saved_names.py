"""The published names of tensors that a training wrapper, or a class of another shape, saved under other names.

    _orig_mod. _fsdp_wrapped_module. ...                   anywhere in a name: torch.compile, FSDP, checkpointing
    module. base_model.model. pretrained_model. model.     before all names: data parallelism, peft, trl, Lightning
    language_model.model. ...                              where the text model begins in another class
    model.mtp. visual. ...                                 where the other parts begin

A name is changed only if its meaning is certain: a wrapper's prefix must be that of all tensors, and no two tensors may
become one. Shapes are checked later, as for any checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from qwonnx.export.errors import TensorFormatError
from qwonnx.runtime.artifact.strict_json import quoted

_EMBEDDING = "embed_tokens.weight"
_WITHIN = re.compile(r"(?:(?<=\.)|^)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AROUND = ("module.", "base_model.model.", "pretrained_model.", "model.")

# Where the text model begins -> where it is published. The published beginnings come first.
_TEXT_MODELS = {
    "model.language_model.": "model.language_model.",
    "model.": "model.",
    "model.language_model.model.": "model.language_model.",
    "language_model.model.": "model.language_model.",
    "language_model.": "model.language_model.",
    "": "model.",
}
# Without any of these in the names, one a line, the published ones have no other name: a quick look at 400,000 names.
_SIGNS = (
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "model.mtp.",
    "model.lm_head.",
    "\nvisual.",
    "\nlanguage_model.",
)
_HEAD = re.compile(r"(?:model\.)?(?:language_model\.)?(lm_head\.)")
_OTHER_PARTS = (
    (re.compile(r"(?:model\.)?(?:language_model\.)?(?:model\.)?mtp\."), "mtp."),
    (re.compile(r"(?:language_model\.)?visual\."), "model.visual."),
)


@dataclass(frozen=True, slots=True)
class SavedNames:
    """Published name -> saved name, of all tensors; notes say which prefixes were dropped or changed."""

    saved: dict[str, str]
    notes: tuple[str, ...]


def published_names(names: Iterable[str]) -> SavedNames:
    """The published names of a checkpoint's tensors; names whose meaning is not certain stay.

    Raises:
        TensorFormatError: two tensors would get one name.
    """
    saved = {name: name for name in names}
    if any(begins + _EMBEDDING in saved for begins in ("model.language_model.", "model.")):
        lines = "\n" + "\n".join(saved)
        if not any(sign in lines for sign in _SIGNS):
            return SavedNames(saved, ())
    notes: list[str] = []
    found = sorted({match for name in saved for match in _WITHIN.findall(name)})
    if found:
        saved = _renamed(saved, lambda name: _WITHIN.sub("", name))
        notes += [f"names: {wrapper}. of a wrapper is dropped" for wrapper in found]
    while (prefix := _wrapper(saved)) is not None:
        saved = {name.removeprefix(prefix): original for name, original in saved.items()}
        notes.append(f"names: {prefix} of a wrapper is dropped")
    begins = next((begins for begins in _TEXT_MODELS if begins + _EMBEDDING in saved), None)
    if begins is None:  # nothing says where the model begins
        return SavedNames({name: name for name in saved.values()}, ())
    published = _TEXT_MODELS[begins]
    if begins != published:
        notes.append(f"names: {begins or 'no prefix'} is read as {published}")
    return SavedNames(_renamed(saved, lambda name: _published(name, begins, published)), tuple(notes))


def _wrapper(names: Collection[str]) -> str | None:
    """The outermost wrapper's prefix, if all names have one and none is where the text model would begin."""
    if not names or any(begins + _EMBEDDING in names for begins in _TEXT_MODELS):
        return None
    return next((prefix for prefix in _AROUND if all(name.startswith(prefix) for name in names)), None)


def _published(name: str, begins: str, published: str) -> str:
    for pattern, part in _OTHER_PARTS:
        if found := pattern.match(name):
            return part + name[found.end() :]
    if found := _HEAD.match(name):
        return name[found.start(1) :]
    if begins == published or not name.startswith(begins):
        return name
    if begins == "" and not name.startswith(("embed_tokens.", "layers.", "norm.")):
        return name
    return published + name.removeprefix(begins)


def _renamed(saved: dict[str, str], rename: Callable[[str], str]) -> dict[str, str]:
    renamed: dict[str, str] = {}
    for name, original in saved.items():
        new = rename(name)
        if new in renamed:
            raise TensorFormatError(
                f"{quoted(renamed[new])} and {quoted(original)} both stand for {quoted(new)}: remove the one of the"
                " older model"
            )
        renamed[new] = original
    return renamed
