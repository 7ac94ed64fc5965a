"""A synthetic artifact with predictable tokens: a few kilobytes, loaded in milliseconds, true to its states.

Its decoder follows the real one's contract (inputs, outputs, states, in-place binding) and computes with integers held
in floats, so a Python function predicts every token exactly. The next token depends on everything that a step must get
right: the last token, the position ids, each layer's convolution and recurrent state, and every key and value cached so
far. So a step that reads another row, skips a chunk or keeps an old state generates another token. It does not read
keys and values behind a row's length: they may be NaN.

    model = make(folder)                       # counts: any prompt, any length
    model.answer(prompt, 8)                    # the eight tokens it must say
    make(folder, script="<think>...")          # says this text after an assistant's header, then <|im_end|>

A prompt with FAILING_TEXT makes the graph fail, one that ends with NAN_TEXT makes its logits NaN. Rows of the
vocabulary without a token get the highest logit, so that a test fails if one is sampled. The file is long because the
graph and the Python function that predicts it must be read side by side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qwonnx.runtime.artifact.folder import file_sha256
from qwonnx.runtime.artifact.manifest import (
    FileEntry,
    GraphSpec,
    Manifest,
    ModelFacts,
    QuantizationFacts,
    SourceFacts,
    StateSpec,
    TensorSpec,
    write_manifest,
)
from qwonnx.runtime.artifact.schemas import SCHEMA_VERSION
from qwonnx.runtime.cache.buffers import BuffersFactory
from qwonnx.runtime.cache.host_buffers import HostBuffers
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.settings import RuntimeSettings
from qwonnx.runtime.text.tokenizer import Tokenizer

FAILING_TEXT = "\x00"
NAN_TEXT = "\x01"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED_TOKENS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
MERGES = ("t h", "th e", "i n", "Ġ a", "Ã ©", "ð Ł")  # the last is half of many emoji
VOCAB_SIZE = 288
MAX_POSITION_EMBEDDINGS = 4096
ASSISTANT_HEADER = "<|im_start|>assistant\n"

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

_ANSWER_ALPHABET = "abcdefghijklmnopqrstuvwxyz "
_SUM_MODULUS = 997
_ATTENTION_MODULUS = 1009


@dataclass(frozen=True, slots=True)
class CountingModel:
    """The output of make(), and the model's predicted answers. open() puts its rows into make_buffers' memory."""

    folder: Path
    tokenizer: Tokenizer
    num_pairs: int
    end_at: int | None
    make_buffers: BuffersFactory = HostBuffers

    def open(self, settings: RuntimeSettings | None = None) -> Engine:
        return Engine.open(self.folder, settings, make_buffers=self.make_buffers)

    @property
    def end_token(self) -> int:
        return _id(self.tokenizer, "<|im_end|>")

    def next_token(self, tokens: Sequence[int]) -> int:
        """The token after these, computed from the whole sequence, without states."""
        if self.end_at is not None and len(tokens) >= self.end_at:
            return self.end_token
        last = len(tokens) - 1
        total = 3 * tokens[-1] + 3 * last
        padded = [0, 0, 0, *tokens]
        convolution = padded[-4] + 2 * padded[-3] + 3 * padded[-2]
        running = sum(tokens) % _SUM_MODULUS
        attention = sum((token + token % 13) * (p % 7 + 1) for p, token in enumerate(tokens)) % _ATTENTION_MODULUS
        for pair in range(self.num_pairs):
            total += (pair + 1) * (5 * convolution + 7 * running + 11 * attention)
        alphabet = self.tokenizer.encode(_ANSWER_ALPHABET)
        return alphabet[total % len(alphabet)]

    def answer(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """The greedy continuation."""
        tokens = list(prompt)
        for _ in range(num_tokens):
            tokens.append(self.next_token(tokens))
        return tokens[len(prompt) :]


def make(
    folder: Path,
    *,
    script: str | None = None,
    script_after: str = ASSISTANT_HEADER,
    end_at: int | None = None,
    num_pairs: int = 1,
    chat_template: str | None = CHAT_TEMPLATE,
    generation_config: dict[str, Any] | None = None,
    generation_config_text: str | None = None,
    failing_text: str = FAILING_TEXT,
    num_top_logits: int | None = None,
    make_buffers: BuffersFactory = HostBuffers,
) -> CountingModel:
    """Write an artifact into a new or empty folder.

    Args:
        folder: created if need be.
        script: the text to say after script_after, and then <|im_end|>; None counts instead.
        script_after: the end of a prompt, from its last <|im_start|> on (the template's generation prompt).
        end_at: while counting, say <|im_end|> once the sequence has this many tokens.
        num_pairs: pairs of one linear-attention and one full-attention layer, with four states per pair.
        chat_template: the template's source, None for an artifact without one.
        generation_config: generation_config.json; by default greedy, ending at <|im_end|> and <|endoftext|>.
        generation_config_text: the same as text, which may be malformed.
        failing_text: one character that makes the graph fail.
        num_top_logits: the graph also gives so many of the largest logits, as graphs for devices do.
        make_buffers: makes the memory of its engines' rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()), encoding="utf-8")
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    end = _id(tokenizer, "<|im_end|>")
    config = generation_config or {"do_sample": False, "eos_token_id": [end, _id(tokenizer, "<|endoftext|>")]}
    text = json.dumps(config) if generation_config_text is None else generation_config_text
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    states = tuple(state for pair in range(num_pairs) for state in _pair_states(pair))
    inputs, outputs = _graph_inputs(), _graph_outputs(num_top_logits)
    graph = _Graph()
    scripted = None if script is None else _Script.of(tokenizer, script, script_after)
    _build(graph, tokenizer, num_pairs, end_at, scripted, tokenizer.encode(failing_text)[0])
    if num_top_logits is not None:
        graph.add_top(num_top_logits)
    onnx.save_model(graph.model(inputs, outputs, states), folder / "decoder.onnx")
    names = sorted(path.name for path in folder.iterdir())
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        qwonnx_version="0",
        target="cpu",
        minimum_onnxruntime="1.20.0",
        source=SourceFacts("counting-model", None, "float32"),
        model=_facts(num_pairs),
        quantization=QuantizationFacts("fp32", 0, "float32", "float32", (), ()),
        graphs={"decoder": GraphSpec("decoder.onnx", inputs, outputs, states, ())},
        files=tuple(FileEntry(n, (folder / n).stat().st_size, file_sha256(folder / n)) for n in names),
    )
    write_manifest(folder, manifest)
    return CountingModel(folder, tokenizer, num_pairs, end_at, make_buffers)


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_id(token)
    assert found is not None, token
    return found


def tokenizer_json() -> dict[str, Any]:
    """A byte-level BPE: 256 bytes, a few merges, two of which cut characters, and Qwen's structural tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in printable}
    alphabet |= {byte: chr(0x100 + i) for i, byte in enumerate(b for b in range(256) if b not in set(printable))}
    tokens = [alphabet[byte] for byte in range(256)] + [merge.replace(" ", "") for merge in MERGES]
    added = [(name, True) for name in SPECIAL_TOKENS] + [(name, False) for name in ADDED_TOKENS]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": len(tokens) + i, "content": name, "special": special, **flags}
            for i, (name, special) in enumerate(added)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": list(MERGES),
        },
    }


def _facts(num_pairs: int) -> ModelFacts:
    return ModelFacts(
        architecture="Qwen3_5MoeForCausalLM",
        model_type="qwen3_5_moe_text",
        num_hidden_layers=2 * num_pairs,
        layer_types=("linear_attention", "full_attention") * num_pairs,
        hidden_size=1,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=MAX_POSITION_EMBEDDINGS,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=1,
        linear_num_key_heads=1,
        linear_num_value_heads=1,
        num_experts=0,
        num_experts_per_tok=0,
        num_parameters=0,
    )


def _pair_states(pair: int) -> tuple[StateSpec, ...]:
    linear, full = 2 * pair, 2 * pair + 1
    shapes: tuple[tuple[int, str, tuple[int | str, ...]], ...] = (
        (linear, "conv_state", ("batch", 1, 3)),
        (linear, "recurrent_state", ("batch", 1, 1, 2)),
        (full, "key", ("batch", 1, "max_model_len", 1)),
        (full, "value", ("batch", 1, "max_model_len", 1)),
    )
    return tuple(
        StateSpec(layer, kind, f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}", "float32", shape)
        for layer, kind, shape in shapes
    )


def _graph_inputs() -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("position_ids", "int64", (3, "batch", "sequence")),
        TensorSpec("past_lengths", "int64", ("batch",)),
        TensorSpec("logit_positions", "int64", ("num_logits",)),
    )


def _graph_outputs(num_top: int | None) -> tuple[TensorSpec, ...]:
    logits = TensorSpec("logits", "float32", ("batch", "num_logits", VOCAB_SIZE))
    if num_top is None:
        return (logits,)
    shape = ("batch", "num_logits", num_top)
    return (logits, TensorSpec("top_logits", "float32", shape), TensorSpec("top_ids", "int64", shape))


@dataclass(frozen=True, slots=True)
class _Script:
    """Tokens to say, indexed by how many tokens follow the last <|im_start|>."""

    marker: int
    table: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, text: str, after: str) -> _Script:
        header = tokenizer.encode(after)
        marker = _id(tokenizer, "<|im_start|>")
        following = len(header) - 1 - max(i for i, token in enumerate(header) if token == marker)
        end = _id(tokenizer, "<|im_end|>")
        return cls(marker, (*[end] * following, *tokenizer.encode(text), end))


class _Graph:
    """Nodes in order, with constants as initializers."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def __call__(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def cast(self, tensor: str, dtype: int) -> str:
        return self("Cast", tensor, to=dtype)

    def columns(self, tensor: str, start: int, end: int) -> str:
        return self("Slice", tensor, self.ints(start), self.ints(end), self.ints(1))

    def add_top(self, count: int) -> None:
        """The largest logits, and their tokens."""
        self._nodes.append(helper.make_node("TopK", ["logits", self.ints(count)], ["top_logits", "top_ids"]))

    def model(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], states: Sequence[StateSpec]
    ) -> onnx.ModelProto:
        kinds = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
        past = [TensorSpec(s.past, s.dtype, s.shape) for s in states]
        present = [TensorSpec(s.present, s.dtype, s.shape) for s in states]
        values = [
            [helper.make_tensor_value_info(s.name, kinds[s.dtype], s.shape) for s in specs]
            for specs in ([*inputs, *past], [*outputs, *present])
        ]
        graph = helper.make_graph(self._nodes, "decoder", values[0], values[1], self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


_LAST = 1 << 62  # as an end of a slice: to the last column


def _build(
    g: _Graph, tokenizer: Tokenizer, num_pairs: int, end_at: int | None, script: _Script | None, failing_token: int
) -> None:
    """The decoder. Everything is [batch, sequence] unless a comment says otherwise."""
    x = g.cast("input_ids", TensorProto.FLOAT)
    length = g("Gather", g("Shape", "input_ids"), g.constant(1, np.int64))  # scalar S
    steps = g("Range", g.constant(0, np.int64), length, g.constant(1, np.int64))  # [S]
    positions = g("Add", g("Unsqueeze", "past_lengths", g.ints(1)), steps)
    axes = g("ReduceSum", g.cast("position_ids", TensorProto.FLOAT), g.ints(0), keepdims=0)
    total = g("Add", g("Mul", x, g.constant(3)), axes)
    since_marker = ""
    for pair in range(num_pairs):
        convolution = _convolution(g, x, 2 * pair)
        running, since_marker = _recurrence(g, x, steps, 2 * pair, script)
        attention = _attention(g, x, positions, 2 * pair + 1)
        for term, factor in ((convolution, 5), (running, 7), (attention, 11)):
            total = g("Add", total, g("Mul", term, g.constant((pair + 1) * factor)))
    if script is None:
        table = tokenizer.encode(_ANSWER_ALPHABET)
        index = g("Mod", total, g.constant(len(table)), fmod=1)
    else:
        table = list(script.table)
        index = g("Clip", since_marker, g.constant(0), g.constant(len(table) - 1))
    failing = g("Equal", "input_ids", g.constant(failing_token, np.int64))
    index = g("Where", failing, g.constant(1e9), index)  # out of the table's bounds: Gather refuses it
    following = g("Gather", g.ints(*table), g.cast(index, TensorProto.INT64))
    if end_at is not None:
        late = g("GreaterOrEqual", positions, g.constant(end_at - 1, np.int64))
        following = g("Where", late, g.constant(_id(tokenizer, "<|im_end|>"), np.int64), following)
    wanted = g("Gather", following, "logit_positions", axis=1)  # [batch, num_logits]
    values = g.constant([0, 10])
    one_hot = g("OneHot", wanted, g.constant(VOCAB_SIZE, np.int64), values)  # [batch, num_logits, vocab]
    padding = np.where(np.arange(VOCAB_SIZE) >= tokenizer.num_tokens, 100, 0)
    last = g("Gather", "input_ids", "logit_positions", axis=1)
    nan = g("Equal", last, g.constant(tokenizer.encode(NAN_TEXT)[0], np.int64))
    broken = g("Unsqueeze", g("Where", nan, g.constant(np.nan), g.constant(0)), g.ints(2))
    g("Add", g("Add", one_hot, g.constant(padding)), broken, output="logits")


def _convolution(g: _Graph, x: str, layer: int) -> str:
    """1, 2 and 3 times the three tokens before each."""
    past = g("Squeeze", f"past_key_values.{layer}.conv_state", g.ints(1))  # [batch, 3]
    joined = g("Concat", past, x, axis=1)
    g("Unsqueeze", g.columns(joined, -3, _LAST), g.ints(1), output=f"present.{layer}.conv_state")
    weighted = [g("Mul", g.columns(joined, i, i - 3), g.constant(i + 1)) for i in range(3)]
    return g("Sum", *weighted)


def _recurrence(g: _Graph, x: str, steps: str, layer: int, script: _Script | None) -> tuple[str, str]:
    """The running sum of tokens, and how many tokens follow the last marker."""
    past = g("Reshape", f"past_key_values.{layer}.recurrent_state", g.ints(-1, 2))
    running = g("Add", g("CumSum", x, g.constant(1, np.int64)), g.columns(past, 0, 1))
    running = g("Mod", running, g.constant(_SUM_MODULUS), fmod=1)
    marker = g("Equal", "input_ids", g.constant(-1 if script is None else script.marker, np.int64))
    place = g.cast(steps, TensorProto.FLOAT)  # [S]
    marked = g("Where", marker, place, g.constant(-1))
    before = g("GreaterOrEqual", g("Unsqueeze", steps, g.ints(1)), g("Unsqueeze", steps, g.ints(0)))  # [S, S]
    candidates = g("Where", before, g("Unsqueeze", marked, g.ints(1)), g.constant(-1))  # [batch, S, S]
    last = g("ReduceMax", candidates, g.ints(2), keepdims=0)
    carried = g("Add", g("Add", place, g.constant(1)), g.columns(past, 1, 2))
    since = g("Where", g("Less", last, g.constant(0)), carried, g("Sub", place, last))
    both = g("Concat", g.columns(running, -1, _LAST), g.columns(since, -1, _LAST), axis=1)
    g("Reshape", both, g.ints(-1, 1, 1, 2), output=f"present.{layer}.recurrent_state")
    return running, since


def _attention(g: _Graph, x: str, positions: str, layer: int) -> str:
    """Weighted sum of all keys and values up to each position, read from the caches after they were written."""
    rows = g(
        "Range", g.constant(0, np.int64), g("Gather", g("Shape", x), g.constant(0, np.int64)), g.constant(1, np.int64)
    )
    rows = g("Expand", g("Unsqueeze", rows, g.ints(1)), g("Shape", x))
    zeros = g("Mul", rows, g.constant(0, np.int64))
    parts = [g("Unsqueeze", part, g.ints(2)) for part in (rows, zeros, positions, zeros)]
    indices = g("Concat", *parts, axis=2)  # [batch, S, 4]
    total = ""
    for kind, update in (("key", x), ("value", g("Mod", x, g.constant(13), fmod=1))):
        present = f"present.{layer}.{kind}"
        g("ScatterND", f"past_key_values.{layer}.{kind}", indices, update, output=present)
        cached = g("Squeeze", present, g.ints(1, 3))  # [batch, capacity]
        total = g("Add", total, cached) if total else cached
    capacity = g("Gather", g("Shape", total), g.constant(1, np.int64))
    places = g("Range", g.constant(0, np.int64), capacity, g.constant(1, np.int64))  # [capacity]
    filled = g("LessOrEqual", places, g.columns(positions, -1, _LAST))  # [batch, capacity]
    total = g("Where", filled, total, g.constant(0))
    weights = g("Add", g("Mod", g.cast(places, TensorProto.FLOAT), g.constant(7), fmod=1), g.constant(1))
    seen = g("LessOrEqual", places, g("Unsqueeze", positions, g.ints(2)))  # [batch, S, capacity]
    seen = g.cast(seen, TensorProto.FLOAT)
    summed = g("MatMul", seen, g("Unsqueeze", g("Mul", total, weights), g.ints(2)))
    return g("Mod", g("Squeeze", summed, g.ints(2)), g.constant(_ATTENTION_MODULUS), fmod=1)
