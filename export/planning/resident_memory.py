"""Memory of a serving process: what ONNX Runtime's CPU provider does with weights, and what lies beside them.

Measured with ONNX Runtime 1.32 on x86-64 with AVX-512 VNNI by `python -m infra.bench.plan_memory` and, kernel by
kernel, from /proc/self/smaps; docs/plan.md has the formulas and the numbers. In short:

- Weight files are mapped. A weight that its kernel packs is copied into memory of the process, and unmapped; what is
  not packed stays mapped, and its pages are in memory as far as they were read.
- Pages of a mapped file can be dropped and read again. Those that were read once, while packing, are free to go; those
  that every step reads are not, if it is to be fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.lowering.siblings import LARGE
from qwonnx.export.planning.decoder_weights import HEAD, Role, StoredWeight, Weight
from qwonnx.export.planning.states import KvType, StateSizes

# `qwonnx serve` with a model of no size: Python, ONNX Runtime's code, the web server; an Engine in a script takes less.
PROCESS_BYTES = 105_000_000
# What a session keeps of a layer's nodes.
_LAYER_BYTES = 430_000
# Memory of the tokenizer for each byte of tokenizer.json.
_TOKENIZER_FACTOR = 10.5

_FLOAT = 4
_PAGE = 4096
# Where the system grants huge pages on request (madvise, the default of most), numpy asks for them in large buffers, as
# those of the states are: memory is then touched by so much at a time.
_HUGE_PAGE = 2 << 20

# The kernels sum up the codes of a block for 16 output features at a time.
_PACKED_ROWS = 16

# The arena gives every intermediate its place when a step of a new shape runs for the first time; from the second on
# they share one block, the memory pattern, which is allocated beside what the first left. A twentieth is lost between.
_ARENA_FACTOR = 2.1

# The portable target's projections end up in float32, since ONNX Runtime computes what is constant when it loads; its
# arena keeps what that took. Upper bounds of what was measured, 1.6 to 1.9 and 4.3 to 5.8 times the float32 weights.
_FOLDED_FLOAT, _FOLDED_CODES = 2, 6


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model is to be served."""

    context: int  # tokens of each sequence, prompt and answer
    sequences: int  # that run at once
    kv: KvType
    chunk_tokens: int  # of a prompt, read in one step
    num_threads: int


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """Bytes of weights once a session is open.

    packed cannot be dropped; mapped is read from the page cache at every step; read_once was read to be packed and can
    be dropped; on_demand is the embedding, of which a token reads a row. scratch is the largest matrix that a kernel
    expands to float32 while it runs.
    """

    packed: int = 0
    mapped: int = 0
    read_once: int = 0
    on_demand: int = 0
    scratch: int = 0

    def __add__(self, other: LoadedWeights) -> LoadedWeights:
        return LoadedWeights(
            self.packed + other.packed,
            self.mapped + other.mapped,
            self.read_once + other.read_once,
            self.on_demand + other.on_demand,
            max(self.scratch, other.scratch),
        )


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of a serving process, in bytes, by what it is for."""

    context: int
    process: int
    session: int
    tokenizer: int
    packed_weights: int
    mapped_weights: int
    read_once_weights: int
    embedding: int
    kv: int
    states: int
    page_rounding: int
    work: int

    @property
    def resident(self) -> int:
        """What the system shows as the process's resident memory once the context is full."""
        return self.required + self.read_once_weights + self.embedding

    @property
    def required(self) -> int:
        """What must be there for it to run at speed: without pages of files that nobody reads again."""
        return (
            self.process
            + self.session
            + self.tokenizer
            + self.packed_weights
            + self.mapped_weights
            + self.kv
            + self.states
            + self.page_rounding
            + self.work
        )


def load_weights(
    config: ModelConfig, weights: Sequence[StoredWeight], *, target: str, int8_activations: bool
) -> LoadedWeights:
    """What becomes of weights when a session loads them."""
    loaded = list(weights)
    if config.tie_word_embeddings:  # the head is the embedding, packed beside it
        embedding = next(weight for weight in weights if weight.role is Role.EMBEDDING)
        loaded.append(StoredWeight((Weight(HEAD, embedding.parts[0].shape),), embedding.storage))
    has_int8_experts = any(weight.role is Role.EXPERTS and weight.storage.bits == 8 for weight in weights)
    total = LoadedWeights()
    for weight in loaded:
        if weight.role is Role.EMBEDDING:
            total += LoadedWeights(on_demand=weight.num_bytes)
        elif weight.role is Role.VECTOR:
            total += LoadedWeights(mapped=weight.num_bytes)
        elif target == "portable":
            total += _portable(weight)
        elif int8_activations and weight.storage.is_quantized:
            total += _packed_with_scales(weight)
        else:
            total += _for_float_activations(weight, has_int8_experts=has_int8_experts)
    return total


def memory_use(
    config: ModelConfig, loaded: LoadedWeights, states: StateSizes, tokenizer_bytes: int, serving: Serving
) -> MemoryUse:
    """Memory of a process once its sequences are as long as `serving.context`."""
    kv = serving.sequences * serving.context * states.kv_bytes_per_token(serving.kv)
    logits = _FLOAT * config.vocab_size * serving.sequences
    return MemoryUse(
        context=serving.context,
        process=PROCESS_BYTES,
        session=_LAYER_BYTES * config.num_hidden_layers,
        tokenizer=int(_TOKENIZER_FACTOR * tokenizer_bytes),
        packed_weights=loaded.packed,
        mapped_weights=loaded.mapped,
        read_once_weights=loaded.read_once,
        embedding=min(loaded.on_demand, serving.sequences * serving.context * _PAGE),
        kv=kv,
        states=serving.sequences * states.fixed_bytes,
        page_rounding=_page_rounding(states, serving),
        work=work_bytes(config, serving) + loaded.scratch + logits,
    )


def work_bytes(config: ModelConfig, serving: Serving) -> int:
    """Intermediate tensors of the largest step, as the arena keeps them: a chunk of a prompt, or a token of each."""
    tokens = min(serving.chunk_tokens, serving.context)
    intermediates = max(tokens, serving.sequences) * held_values(config) * _FLOAT
    # Each thread adds its experts' outputs up in a copy of its own.
    copies = serving.num_threads * tokens * config.hidden_size * _FLOAT if config.num_experts else 0
    return int(_ARENA_FACTOR * intermediates) + copies


def held_values(config: ModelConfig) -> int:
    """Numbers that a step holds for each of its tokens.

    A buffer is used again by the next layer that needs one of its shape, and given back after the last: so every shape
    of a layer of each kind is held at once. Full attention that no linear layer follows comes after those were freed.
    """
    hidden = config.hidden_size
    values = config.linear_num_value_heads * config.linear_value_head_dim
    keys = 2 * config.linear_num_key_heads * config.linear_key_head_dim
    queries, cached = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    # z and its SiLU; qkv, transposed, convolved, its SiLU; q and k, normed, apart.
    linear = 2 * values + 4 * (keys + values) + 3 * keys
    # q_proj, query and gate; both apart, normed, flat, rotated, attended, gated.
    full = 9 * queries + 6 * cached
    if config.num_experts:
        inner = hidden + 4 * config.shared_expert_intermediate_size + 2 * config.num_experts
    else:
        joined = hidden * config.intermediate_size < LARGE
        inner = 2 * hidden + (5 if joined else 4) * config.intermediate_size
    kinds = config.layer_types
    if "full_attention" not in kinds:
        mixer = linear
    elif "linear_attention" not in kinds[kinds.index("full_attention") :]:
        mixer = max(full, linear if "linear_attention" in kinds else 0)
    else:
        mixer = linear + full
    return 2 * hidden + mixer + inner


def _page_rounding(states: StateSizes, serving: Serving) -> int:
    """At most what huge pages add: one for each stripe of keys or values, and one for each layer's recurrent states."""
    return _HUGE_PAGE * (states.num_kv_stripes * serving.sequences + states.num_linear_layers)


def _packed_with_scales(weight: StoredWeight) -> LoadedWeights:
    """CPU kernels that quantise activations: codes, scales and a sum for each block lie together."""
    blocks = weight.num_columns // weight.storage.block_size
    sums = _FLOAT * _rounded_up(weight.num_rows, _PACKED_ROWS) * blocks
    scales = weight.num_scale_bytes
    return LoadedWeights(packed=weight.num_code_bytes + scales + sums, read_once=scales)


def _for_float_activations(weight: StoredWeight, *, has_int8_experts: bool) -> LoadedWeights:
    """CPU kernels on float32: matrices of float32 and of 4-bit codes are packed, all else is read where it lies."""
    storage, experts = weight.storage, weight.role is Role.EXPERTS
    if storage.bits == 4 and not (experts and has_int8_experts):
        return LoadedWeights(packed=weight.num_code_bytes, mapped=weight.num_scale_bytes)
    if not storage.is_quantized and not experts:
        return LoadedWeights(packed=_FLOAT * _rounded_up(weight.num_rows, _PACKED_ROWS) * weight.num_columns)
    num_matrices = weight.parts[0].shape[0] if experts else 1
    scratch = _FLOAT * weight.num_parameters // num_matrices if storage.is_quantized else 0
    return LoadedWeights(mapped=weight.num_bytes, scratch=scratch)


def _portable(weight: StoredWeight) -> LoadedWeights:
    """Standard operators: upper bounds, see above. Experts are expanded one at a time, the others at load."""
    if weight.role is Role.EXPERTS:
        return LoadedWeights(mapped=weight.num_bytes)
    factor = _FOLDED_CODES if weight.storage.is_quantized else _FOLDED_FLOAT
    return LoadedWeights(packed=factor * _FLOAT * weight.num_parameters)


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
