"""The tokenizer.json of an artifact: the checkpoint's own, with the added tokens that only other files name.

    tokenizer.json                  the tokenizer; it is copied unchanged if the other files add nothing
    vocab.json, merges.txt          stand for a missing tokenizer.json, in Qwen 3.5's frame
    tokenizer_config.json           added_tokens_decoder, and special tokens by name
    added_tokens.json, special_tokens_map.json    of older versions, read only without added_tokens_decoder

transformers reads the same files and gives every added token an id by its place. Where that is not the id that the file
states, the files contradict each other and are refused. Where AutoTokenizer would read something else than
tokenizer.json says (it puts Qwen 3.5's own pre-tokenizer in), the file is followed and a note says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from qwonnx.export.checkpoint.foreign_formats import refuse_pointer
from qwonnx.export.errors import CheckpointError
from qwonnx.runtime.artifact.file_names import TOKENIZER_FILE
from qwonnx.runtime.artifact.strict_json import StrictJsonError, parse_object, quoted
from qwonnx.runtime.errors import TokenizerError
from qwonnx.runtime.quantities import bytes_text
from qwonnx.runtime.text.tokenizer import MAX_FILE_BYTES, Tokenizer

CONFIG_FILE = "tokenizer_config.json"
_VOCABULARY, _MERGES = "vocab.json", "merges.txt"
_ADDED, _SPECIAL_MAP = "added_tokens.json", "special_tokens_map.json"
_MAX_CONFIG_BYTES = 16 << 20
_NULL = msgspec.Raw(b"null")

# In the order in which transformers appends them.
_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))

# Qwen 3.5's own, which AutoTokenizer of transformers 5 puts in the place of what the file says.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPLIT = {"type": "Split", "pattern": {"Regex": _PATTERN}, "behavior": "Isolated", "invert": False}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
FRAME: Mapping[str, Any] = {
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [QWEN_SPLIT, _BYTE_LEVEL]},
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
}


class _Parts(msgspec.Struct, frozen=True):
    """The parts of a tokenizer.json, each as its text; other keys are not read by anything."""

    version: msgspec.Raw = msgspec.Raw(b'"1.0"')
    truncation: msgspec.Raw = _NULL
    padding: msgspec.Raw = _NULL
    added_tokens: msgspec.Raw = _NULL
    normalizer: msgspec.Raw = _NULL
    pre_tokenizer: msgspec.Raw = _NULL
    post_processor: msgspec.Raw = _NULL
    decoder: msgspec.Raw = _NULL
    model: msgspec.Raw = _NULL


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """The text of a tokenizer.json, and notes for display about what was added or is read differently elsewhere."""

    content: bytes
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AddedToken:
    """An added token, as tokenizer.json describes it."""

    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A tokenizer.json and the tokenizer that it makes; wrong is a token that gets another id than it states."""

    content: bytes
    tokenizer: Tokenizer
    wrong: AddedToken | None


def tokenizer_source(folder: Path) -> TokenizerSource:
    """The tokenizer of a checkpoint's folder; only the added tokens are looked at.

    Raises:
        CheckpointError: there is no tokenizer; a file cannot be read; or the files contradict each other.
    """
    config = read_config(folder)
    path = folder / TOKENIZER_FILE
    content = read_text_file(path, MAX_FILE_BYTES) if path.is_file() else _built(folder, config)
    try:
        parts = msgspec.json.decode(content, type=_Parts)
        listed = msgspec.json.decode(parts.added_tokens, type=list[dict[str, Any]] | None)
        own = [_token(path, one.get("id"), one) for one in listed or ()]
    except (msgspec.MsgspecError, UnicodeError, RecursionError, CheckpointError):
        return TokenizerSource(content, ())  # the runtime's own reader says what is wrong
    known = {token.content: token for token in own}
    special = _named(folder, config)
    # A token that is special by one file, or by a name, stays so.
    always = {*special, *(token.content for token in own if token.special)}
    stated = [replace(t, special=t.special or t.content in always) for t in _stated(folder, config, own)]
    notes = [*_differences(parts, config), *_dropped(config, own, stated)]
    if not path.is_file():
        notes.append(f"tokenizer: built from {_VOCABULARY} and {_MERGES}")
    missing = sorted((token for token in stated if token.content not in known), key=lambda token: token.id)
    changed = [token for token in stated if token.content in known and known[token.content] != token]
    if moved := next((token for token in changed if known[token.content].id != token.id), None):
        raise _contradiction(folder, moved, known[moved.content].id, CONFIG_FILE)
    flags = {token.content: token for token in changed}
    tokens = [flags.get(token.content, token) for token in own] + missing
    names = [name for name in special if name not in {token.content for token in tokens}]
    if not (missing or changed or names):
        return TokenizerSource(content, tuple(notes))
    if missing:
        notes.append(f"tokenizer: {len(missing)} added tokens come from {CONFIG_FILE} or {_ADDED} ({_some(missing)})")
    if changed:
        notes.append(f"tokenizer: {CONFIG_FILE} says how {len(changed)} added tokens match ({_some(changed)})")
    if {token.content for token in stated} >= known.keys():
        # The whole list is in tokenizer_config.json, and AutoTokenizer numbers that one alone.
        tokens.sort(key=lambda token: token.id)
    made = _with_tokens(folder, parts, tokens, names)
    if made.wrong is not None:
        source = TOKENIZER_FILE if made.wrong.content in known else CONFIG_FILE
        raise _contradiction(folder, made.wrong, made.tokenizer.token_id(made.wrong.content), source)
    if names:
        shown = ", ".join(f"{quoted(name)} is {made.tokenizer.token_id(name)}" for name in names[:3])
        notes.append(f"tokenizer: special tokens that have only a name get an id, as in transformers ({shown})")
    return TokenizerSource(made.content, tuple(notes))


def read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, empty without one.

    Raises:
        CheckpointError: it cannot be read, or is not an object.
    """
    return _object(folder / CONFIG_FILE)


def special_names(folder: Path) -> dict[str, str]:
    """Special tokens by the names under which transformers gives them to a chat template ("eos_token")."""
    config = read_config(folder)
    described = config if "added_tokens_decoder" in config else {**config, **_object(folder / _SPECIAL_MAP)}
    found = {name: text for name, value in described.items() if name.endswith("_token") and (text := _text(value))}
    extra = described.get("extra_special_tokens")
    if isinstance(extra, dict):
        found |= {name: text for name, value in extra.items() if (text := _text(value))}
    # Defaults of transformers' class for this model, where the file does not say null.
    absent = (name for name in ("eos_token", "pad_token", "unk_token") if name not in described)
    return {**dict.fromkeys(absent, "<|endoftext|>"), **found}


def read_text_file(path: Path, max_bytes: int) -> bytes:
    """All of a file.

    Raises:
        CheckpointError: it cannot be read, or is larger than the model's own can be.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{path} cannot be read ({reason}): check the file and its permissions") from error
    refuse_pointer(path, content)
    if len(content) > max_bytes:
        raise CheckpointError(f"{path} is larger than {bytes_text(max_bytes)}: it is not the model's own")
    return content


def unusable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be used ({reason}): correct it, or copy the one of the model's training")


def _built(folder: Path, config: Mapping[str, Any]) -> bytes:
    """A tokenizer.json from vocab.json and merges.txt."""
    if not ((folder / _VOCABULARY).is_file() and (folder / _MERGES).is_file()):
        other = next((path.name for path in sorted(folder.iterdir()) if path.suffix in (".model", ".tiktoken")), None)
        if other is not None:
            raise CheckpointError(
                f"{folder} has no {TOKENIZER_FILE} and {quoted(other)}, which is of SentencePiece or tiktoken: load it"
                " with AutoTokenizer of transformers and write it with save_pretrained"
            )
        raise CheckpointError(
            f"{folder} has no {TOKENIZER_FILE}: copy it and {CONFIG_FILE} from the base model, or from where the model"
            " was trained"
        )
    vocabulary = _object(folder / _VOCABULARY, MAX_FILE_BYTES)
    lines = read_text_file(folder / _MERGES, MAX_FILE_BYTES).decode("utf-8", errors="replace").split("\n")
    merges = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    if "added_tokens_decoder" not in config and not (folder / _ADDED).is_file():
        raise CheckpointError(
            f"{folder} has {_VOCABULARY} and no list of its special tokens (added_tokens_decoder in {CONFIG_FILE}):"
            f" copy {TOKENIZER_FILE} from the base model, or from where the model was trained"
        )
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    return json.dumps({"version": "1.0", "added_tokens": [], **FRAME, "model": model}, ensure_ascii=False).encode()


def _stated(folder: Path, config: Mapping[str, Any], own: list[AddedToken]) -> Iterator[AddedToken]:
    """The added tokens with ids that other files than tokenizer.json state."""
    decoder = config.get("added_tokens_decoder")
    if decoder is not None:
        if not isinstance(decoder, dict) or not all(isinstance(one, dict) for one in decoder.values()):
            raise unusable(folder / CONFIG_FILE, "its added_tokens_decoder is not an object of tokens")
        yield from (
            _token(folder / CONFIG_FILE, int(number) if number.isdecimal() else None, one)
            for number, one in decoder.items()
        )
        return
    special = set(_named(folder, config))
    in_file = {token.content for token in own}  # tokenizer.json overrides the older file
    for content, number in _object(folder / _ADDED).items():
        if content not in in_file:
            is_special = content in special
            yield _token(folder / _ADDED, number, {"content": content, "special": is_special})


def _named(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Special tokens that have a name and perhaps no id, in the order in which transformers appends them."""
    described = config if "added_tokens_decoder" in config else {**config, **_object(folder / _SPECIAL_MAP)}
    extra = described.get("extra_special_tokens") or described.get("additional_special_tokens") or []
    others = [name for name in described if name.endswith("_token") and name not in _NAMED]
    values = [described.get(name) for name in (*_NAMED, *others) if not isinstance(described.get(name), bool)]
    values += extra.values() if isinstance(extra, dict) else extra if isinstance(extra, list) else []
    return list(dict.fromkeys(text for value in values if (text := _text(value))))


def _text(value: Any) -> str | None:
    """A special token as files write it: its text, or an object with its text."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) and found else None


def _token(path: Path, number: Any, described: Mapping[str, Any]) -> AddedToken:
    content, special = described.get("content"), described.get("special", False)
    flags = {
        "single_word": described.get("single_word", False),
        "lstrip": described.get("lstrip", False),
        "rstrip": described.get("rstrip", False),
        "normalized": described.get("normalized", not special),
        "special": special,
    }
    sound = isinstance(content, str) and content and type(number) is int and 0 <= number < 1 << 31
    if not sound or not all(isinstance(flag, bool) for flag in flags.values()):
        raise unusable(path, f"it has the added token {quoted(dict(described), 80)}")
    return AddedToken(number, str(content), **flags)


def _with_tokens(folder: Path, parts: _Parts, tokens: list[AddedToken], names: list[str]) -> _Numbered:
    """A tokenizer.json with these added tokens, then special tokens of these names."""
    made = _numbered(folder, parts, [*tokens, *(_by_name(name, 0) for name in names)])
    if not names:
        return made
    # The library has numbered the names; the file says so too.
    return _numbered(folder, parts, [*tokens, *(_by_name(name, made.tokenizer.token_id(name) or 0) for name in names)])


def _by_name(name: str, number: int) -> AddedToken:
    return AddedToken(number, name, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)


def _numbered(folder: Path, parts: _Parts, tokens: list[AddedToken]) -> _Numbered:
    listed = msgspec.Raw(msgspec.json.encode([asdict(token) for token in tokens]))
    content = msgspec.json.encode(msgspec.structs.replace(parts, added_tokens=listed))
    try:
        tokenizer = Tokenizer(content)
    except TokenizerError as error:
        raise unusable(folder / TOKENIZER_FILE, error.reason) from error
    return _Numbered(content, tokenizer, next((t for t in tokens if tokenizer.token_id(t.content) != t.id), None))


def _contradiction(folder: Path, token: AddedToken, other: int | None, source: str) -> CheckpointError:
    return CheckpointError(
        f"{folder / source} gives {quoted(token.content)} the id {token.id}, and transformers, which numbers added"
        f" tokens by their place in all files, would give it {other}: copy {TOKENIZER_FILE} and {CONFIG_FILE} from the"
        " base model, or from where the model was trained"
    )


def _differences(parts: _Parts, config: Mapping[str, Any]) -> Iterator[str]:
    """Notes on what AutoTokenizer reads differently from tokenizer.json."""
    named = {"normalizer": "normalizer", "pre_tokenizer": "pre-tokenizer"}
    for key, shown in named.items():
        found = msgspec.json.decode(getattr(parts, key))
        if _essence(found) != _essence(FRAME[key]):
            yield (
                f"tokenizer: its {shown} is not Qwen 3.5's own, which AutoTokenizer of transformers 5 would use:"
                f" {TOKENIZER_FILE} is followed"
            )
    if config.get("add_prefix_space") is True:
        yield f"tokenizer: AutoTokenizer would put a space first (add_prefix_space), {TOKENIZER_FILE} is followed"


def _dropped(config: Mapping[str, Any], own: list[AddedToken], stated: list[AddedToken]) -> Iterator[str]:
    listed = {token.content for token in stated}
    lost = [token for token in own if token.content not in listed]
    if "added_tokens_decoder" in config and lost:
        yield (
            f"tokenizer: {CONFIG_FILE} lacks {len(lost)} added tokens ({_some(lost)}), which AutoTokenizer would drop:"
            f" {TOKENIZER_FILE} is followed"
        )


def _some(tokens: list[AddedToken]) -> str:
    return ", ".join(quoted(token.content) for token in tokens[:3]) + (", ..." if len(tokens) > 3 else "")


def _essence(part: Any) -> Any:
    """A part without fields that do not change tokens."""
    if isinstance(part, dict):
        if part.get("type") == "Sequence":
            inner = [_essence(one) for value in part.values() if isinstance(value, list) for one in value]
            return inner[0] if len(inner) == 1 else inner
        return {name: _essence(value) for name, value in part.items() if name != "trim_offsets"}
    return part


def _object(path: Path, max_bytes: int = _MAX_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON file's object; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        return parse_object(read_text_file(path, max_bytes))
    except StrictJsonError as error:
        raise unusable(path, str(error)) from error
