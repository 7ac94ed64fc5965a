"""Malformed checkpoints: each has a name, and a change of a sound one's folder. A new case is a new line here."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qwonnx.export.checkpoint.config_fields import FIXED, READ
from tests.checkpoints import write_tiny
from tests.export.whole.checkpoint_damage import (
    CONFIG,
    GENERATION,
    INDEX,
    SINGLE,
    TEMPLATE,
    TOKENIZER,
    Damage,
    component,
    document,
    file,
    first,
    header_of,
    ignoring_the_other,
    index,
    linked,
    loop,
    overlapping,
    renamed,
    shard,
    shard_called,
    special,
    tensors,
    text_config,
    unchanged,
    without_a_byte,
)
from tests.export.whole.mutations import ODD_VALUES, damaged_bytes, damaged_json, paths, removed, replaced

TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class Case:
    """One checkpoint. sharded selects one of the two sound ones, to which the change is applied."""

    name: str
    damage: Damage
    sharded: bool = False
    must_be_refused: bool = True


def write_sound(folder: Path, *, sharded: bool) -> Path:
    """Two layers, dense in neither kind, with a template that takes no time to compile."""
    layers = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    write_tiny(folder, num_shards=2 if sharded else 1, vision=False, text_overrides=layers)
    (folder / TEMPLATE).write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    return folder


# Contents


@cache
def bombs() -> dict[str, bytes]:
    """Objects of a few megabytes from which a careless reader makes gigabytes, or a stack overflow."""
    return {
        "deep list": b'{"a":' + b"[" * 200_000,
        "deep list that ends": b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        "deep object": b'{"a":' * 200_000,
        "just deep enough to be parsed": b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
        "millions of lists": b'{"a":[' + b"[]," * 3_000_000 + b"[]]}",
        "millions of objects": b'{"a":[' + b"{}," * 3_000_000 + b"{}]}",
        "millions of keys": json.dumps(dict.fromkeys(map(str, range(2_200_000)), 0)).encode(),
        "as many values as are read": b'{"a":[' + b"[]," * ((1 << 21) - 4) + b"[]]}",
        "a number of a million digits": b'{"a":' + b"9" * 1_000_000 + b"}",
        "a name of 10 MB": b'{"' + b"n" * 10_000_000 + b'": 1}',
        "a string of 10 MB": b'{"a":"' + b"\\n" * 5_000_000 + b'"}',
    }


# A reader that only looks for its own fields may accept these.
SOUND_OBJECTS = ("just deep enough to be parsed", "as many values as are read", "a name of 10 MB", "a string of 10 MB")

NO_OBJECTS = {
    "empty": b"",
    "NUL bytes": bytes(100),
    "a list": b"[]",
    "a string": b'"x"',
    "a number": b"7",
    "null": b"null",
    "cut": b'{"a": 1',
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "a duplicate key": b'{"a": 1, "a": 2}',
    "NaN": b'{"a": NaN}',
    "minus infinity": b'{"a": -Infinity}',
    "two objects": b"{}{}",
    "a comment": b"{} // none",
}
NO_FILES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a loop of links": loop,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
}


# The lists


def headers() -> dict[str, Damage]:
    """model.safetensors."""
    lengths = (0, 1, 2, 100_000_001, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
    names = ("", "a\nb\x1b[2J", "\x00", "\ud800", "x" * 10_000_000, "../../etc/passwd", "\u202ex", "{name}")
    return {
        **{f"length {length}": tensors(unchanged, length=length) for length in lengths},
        **{f"header {name}": tensors(content) for name, content in {**NO_OBJECTS, **bombs()}.items()},
        **{f"a tensor called {name[:20]!r}": tensors(renamed(name)) for name in names},
        **{f"weights: {name}": special(SINGLE, make) for name, make in NO_FILES.items()},
        "no bytes after the header": tensors(unchanged, data=-(1 << 40)),
        "one byte too few": tensors(unchanged, data=-1),
        "one byte too many": tensors(unchanged, data=1),
        "no tensors": tensors(lambda header: {}),
        "a product that is 0 in 64 bits": tensors(first({"shape": [1 << 61, 8], "data_offsets": [0, 0]})),
        "a product of 496 bits": tensors(first({"shape": [(1 << 62) - 1] * 8})),
        "nine axes": tensors(first({"shape": [1] * 9})),
        "a million axes": tensors(first({"shape": [1] * 1_000_000})),
        "a negative size": tensors(first({"shape": [-1, 5]})),
        "an empty tensor of huge size": tensors(first({"shape": [0, 1 << 61], "data_offsets": [0, 0]})),
        "offsets that overlap": tensors(overlapping),
        "offsets beyond 64 bits": tensors(first({"data_offsets": [0, 1 << 70]})),
        "offsets the wrong way round": tensors(first({"data_offsets": [8, 0]})),
        "a gap": tensors(first({"data_offsets": [8, 16]}), data=8),
        "a field too many": tensors(first({"surprise": 1})),
        "no dtype": tensors(first({"dtype": None})),
        "no shape": tensors(first({"shape": None})),
        "no offsets": tensors(first({"data_offsets": None})),
        "a dtype that is an object": tensors(first({"dtype": {"a": "F32"}})),
        "an unknown dtype": tensors(first({"dtype": "F31"})),
        "a dtype of the same width": tensors(first({"dtype": "I16"})),
        "a dtype of 10 MB": tensors(first({"dtype": "F" * 10_000_000})),
        "a tensor that is a list": tensors(lambda header: {**header, "x": []}),
        "a duplicate tensor": tensors(b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":{}}'),
        "a duplicate field": tensors(b'{"a":{"dtype":"F32","dtype":"F16","shape":[],"data_offsets":[0,4]}}'),
        "another shape": tensors(first({"shape": [64, 2560]})),
    }


def indexes() -> dict[str, Damage]:
    """model.safetensors.index.json, and the shards it names."""
    names = (
        *ODD_VALUES,
        INDEX,
        "/etc/passwd.safetensors",
        "../x.safetensors",
        "a/b.safetensors",
        "..\\x.safetensors",
        "\x00.safetensors",
        "a\nb.safetensors",
        "\x7f.safetensors",
        "\u202ex.safetensors",
        "é" * 190 + ".safetensors",  # 392 bytes, which no file system takes
        "x" * 200 + ".safetensors",
        "x" * 10_000_000 + ".safetensors",
        "~.safetensors",
        "missing.safetensors",
    )
    contents = {**NO_OBJECTS, **bombs()}
    return {
        **{f"index {name}": file(INDEX, content) for name, content in contents.items()},
        **{f"map {name}": file(INDEX, b'{"weight_map":' + content + b"}") for name, content in contents.items()},
        **{f"a shard called {str(name)[:30]!r}": shard_called(name) for name in names},
        **{f"a shard that is {name}": shard(0, ignoring_the_other(make)) for name, make in NO_FILES.items()},
        "no map": document(INDEX, lambda content: {"metadata": {}}),
        "the index under a shard's name": shard(0, lambda path, other: path.symlink_to(INDEX)),
        "both shards one file": shard(0, lambda path, other: path.symlink_to(other.name)),
        "both shards one file by a hard link": shard(0, lambda path, other: path.hardlink_to(other.resolve())),
        "shards that are links to each other": shard(0, linked),
        "a missing shard": shard(1, lambda path, other: None),
        "an empty shard": shard(0, lambda path, other: path.write_bytes(b"")),
        "shards in each other's place": index(
            lambda names, shards: {name: shards[1 - shards.index(at)] for name, at in names.items()}
        ),
        "a tensor that no shard has": index(lambda names, shards: names.update({"x" * 10_000: shards[0]})),
        "a tensor that is not listed": index(lambda names, shards: {name: names[name] for name in list(names)[1:]}),
        "200,000 shards": index(lambda names, shards: {str(n): f"{n}.safetensors" for n in range(200_000)}),
    }


def configs() -> dict[str, Damage]:
    """config.json."""
    return {
        **{f"config {name}": file(CONFIG, content) for name, content in {**NO_OBJECTS, **bombs()}.items()},
        **{f"config.json: {name}": special(CONFIG, make) for name, make in NO_FILES.items()},
        **{
            f"text_config {value!r}": file(
                CONFIG, b'{"architectures":["Qwen3_5MoeForCausalLM"],"text_config":%b}' % value
            )
            for value in (b"[]", b'"x"', b"7", b"{}", b"[1]")
        },
        "a config of 10 MB": file(CONFIG, b"{" + b" " * 10_000_000 + b"}"),
        "a thousand layers": text_config(
            lambda text: text.update(num_hidden_layers=1024, layer_types=["full_attention"] * 1024)
        ),
        "sizes whose product is beyond 64 bits": text_config(
            lambda text: text.update(num_experts=1 << 24, moe_intermediate_size=1 << 24)
        ),
        "a context beyond all bounds": text_config(
            lambda text: text["rope_parameters"].update(rope_type="yarn", factor=1e12)
        ),
        "quantised, says the config": document(CONFIG, lambda content: {**content, "quantization_config": {"bits": 4}}),
    }


def texts() -> dict[str, Damage]:
    """tokenizer.json, chat_template.jinja and generation_config.json."""
    contents = {**NO_OBJECTS, **bombs()}
    no_advice = {name: content for name, content in contents.items() if name not in SOUND_OBJECTS}
    advice: dict[str, tuple[Any, ...]] = {
        "temperature": ("hot", -1, 1e300, float("inf"), float("nan"), True, [1], 10**400),
        "top_p": (0, 1.5, -1, "1", True),
        "top_k": (-1, 0.5, 1 << 63, float("inf"), float("nan"), "20", True, [1]),
        "min_p": (2, -0.1),
        "repetition_penalty": (0, 1e9),
        "eos_token_id": ("x", 1.5, True, [None], [[1]], {"a": 1}),
    }
    decoders: tuple[Any, ...] = (7, "x", [1], {"a": {}}, {"1": 7}, {"1300": {}}, {"1300": {"content": 7}}, {"-1": {}})
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}
    return {
        **{f"tokenizer {name}": file(TOKENIZER, content) for name, content in contents.items()},
        **{f"tokenizer.json: {name}": special(TOKENIZER, make) for name, make in NO_FILES.items()},
        **{f"generation_config {name}": file(GENERATION, content) for name, content in no_advice.items()},
        **{f"tokenizer_config {name}": file(TOKENIZER_CONFIG, content) for name, content in no_advice.items()},
        **{
            f"added_tokens_decoder {value!r}": file(
                TOKENIZER_CONFIG, json.dumps({"added_tokens_decoder": value}).encode()
            )
            for value in decoders
        },
        **{
            f"chat_template {value!r}": _only_template(value)
            for value in (7, [7], [{"name": "default"}], {"default": 7}, "{% if %}", [{"name": 1, "template": "x"}])
        },
        **{
            f"{name} {str(value)[:30]!r}": file(GENERATION, json.dumps({name: value}).encode())
            for name, values in advice.items()
            for value in values
        },
        # With these bytes the library requests 8 GB, and ends the process; with fewer, it panics.
        "a charsmap that aborts": component("normalizer", charsmap),
        "a charsmap that panics": component("normalizer", {**charsmap, "precompiled_charsmap": "AAAA"}),
        "a charsmap without a type": component("normalizer", {"precompiled_charsmap": "/////w=="}),
        "a charsmap in a sequence": component("normalizer", {"type": "Sequence", "normalizers": [charsmap]}),
        "a charsmap in an odd sequence": component("normalizer", {"type": "Sequence", "x": [[charsmap]]}),
        "a sequence without parts": component("pre_tokenizer", {"type": "Sequence"}),
        "another model": component("model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
        "another decoder": component("decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}),
        "no decoder": component("decoder", None),
        "no model": component("model", None),
        "a pattern that is none": component(
            "pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
        ),
        "a dropout": document(TOKENIZER, lambda content: content["model"].update(dropout=0.1)),
        "no token for a byte": document(TOKENIZER, without_a_byte),
        "an empty vocabulary": document(TOKENIZER, lambda content: content["model"].update(vocab={}, merges=[])),
        "a merge of nothing": document(TOKENIZER, lambda content: content["model"]["merges"].append(["zz", "yy"])),
        "a token beyond the embedding": document(TOKENIZER, lambda content: content["model"]["vocab"].update(z_z=1280)),
        "a template that is not UTF-8": file(TEMPLATE, b"\xff\xfe"),
        "a template that does not end": file(TEMPLATE, b"{% for message in messages %}"),
        "a template with an unknown filter": file(TEMPLATE, b"{{ messages|nonsense }}"),
        "a template of too many loops": file(TEMPLATE, b"{% for a in b %}" * 25 + b"{% endfor %}" * 25),
        "a template of 100,000 brackets": file(TEMPLATE, b"{{ " + b"(" * 100_000 + b")" * 100_000 + b" }}"),
        "a template of 2 MB": file(TEMPLATE, b"x" * 2_000_000),
    }


def _only_template(value: Any) -> Damage:
    """A chat template in tokenizer_config.json alone."""

    def damage(folder: Path) -> None:
        (folder / TEMPLATE).unlink()
        file(TOKENIZER_CONFIG, json.dumps({"chat_template": value}).encode())(folder)

    return damage


def named_cases() -> Iterator[Case]:
    """Cases that are wrong in a known way, and must be refused."""
    for cases in (headers(), configs(), texts()):
        yield from (Case(name, damage) for name, damage in cases.items())
    yield from (Case(name, damage, sharded=True) for name, damage in indexes().items())


def mutated_cases(sound: Path, sharded: Path, seed: int, scale: int) -> Iterator[Case]:
    """Every field of config.json with every odd value, and files damaged by a seed. Some are still sound."""
    config = json.loads((sound / CONFIG).read_bytes())
    for place in paths(config):
        if len(place) == 1 or place[0] == "text_config":
            where = ".".join(map(str, place))
            yield Case(f"without {where}", _written(CONFIG, removed(config, place)), must_be_refused=False)
            matters = place[:-1] not in ((), ("text_config",)) or place[-1] in READ | FIXED.keys()
            for number, value in enumerate(ODD_VALUES if matters else ODD_VALUES[:2]):
                damage = _written(CONFIG, replaced(config, place, value))
                yield Case(f"{where} = odd value {number}", damage, must_be_refused=False)

    header, _ = header_of(sound / SINGLE)
    documents: dict[str, Any] = {CONFIG: config, INDEX: json.loads((sharded / INDEX).read_bytes())}
    documents |= {name: json.loads((sound / name).read_bytes()) for name in (TOKENIZER, GENERATION)}
    for number in range(scale):
        for name, content in documents.items():
            if name == TOKENIZER and number % 8:
                continue  # slow: the library reads what is left of a thousand tokens
            rng = random.Random(f"{seed} {name} {number}")
            for kind, raw in (("JSON", damaged_json(content, rng)), ("bytes", damaged_bytes(_dumped(content), rng))):
                label = f"{name} as {kind} {number}"
                yield Case(label, file(name, raw), sharded=name == INDEX, must_be_refused=False)
        rng = random.Random(f"{seed} header {number}")
        yield Case(f"header as JSON {number}", tensors(damaged_json(header, rng)), must_be_refused=False)
        yield Case(f"header as bytes {number}", tensors(damaged_bytes(_dumped(header), rng)), must_be_refused=False)
        template = (sound / TEMPLATE).read_bytes()
        yield Case(f"template {number}", file(TEMPLATE, damaged_bytes(template, rng)), must_be_refused=False)


def _written(name: str, content: Any) -> Damage:
    return lambda folder: file(name, json.dumps(content).encode())(folder)


def _dumped(content: Any) -> bytes:
    return json.dumps(content).encode()
