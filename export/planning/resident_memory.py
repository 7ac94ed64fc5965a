"""Memory of a serving process: weights as ONNX Runtime's CPU provider loads them, and everything else.

Measured with ONNX Runtime 1.32 on x86-64 with AVX-512 VNNI by `python -m infra.bench.plan_memory`; docs/plan.md has the
formulas and the numbers. In short:

- Weight files are mapped, and native kernels read them there. A weight that a kernel of ONNX Runtime packs is copied
  into memory of the process, and unmapped. A weight that is not packed stays mapped, and the pages that were read are
  in memory. The target knows which are packed.
- Pages of a mapped file can be dropped and read again. Pages that were read once, for packing, may be dropped. Pages
  that every step reads must stay in memory for full speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_names import Role, tied_weights
from qwonnx.export.checkpoint.weight_part import WeightPart
from qwonnx.export.lowering.siblings import LARGE
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.planning.artifact_size import ArtifactSize
from qwonnx.export.planning.states import StateSizes
from qwonnx.export.targets.target import LoadedWeights, TargetChoice
from qwonnx.export.weight_files.weight_item import WeightItem
from qwonnx.runtime.artifact.file_names import TOKENIZER_FILE, VOCABULARY_FILE
from qwonnx.runtime.native.kernels import Kernels

# `qwonnx serve` without the model: Python, ONNX Runtime's code, the web server. An Engine in a script takes less.
PROCESS_BYTES = 105_000_000
# Memory of a layer's nodes in a session.
_LAYER_BYTES = 430_000
# Memory of a tokenizer that is loaded, for each byte of tokenizer.json; and of one that is mapped, besides its file.
_LOADED_TOKENIZER_FACTOR = 10.5
_MAPPED_TOKENIZER_BYTES = 2_000_000

_FLOAT = 4
_PAGE = 4096
# If the system grants huge pages on request (madvise, the usual default), numpy requests them for large buffers, such
# as those of the states. Memory then becomes resident in such pages.
_HUGE_PAGE = 2 << 20

# The arena allocates each intermediate when a step of a new shape runs for the first time. From the second run on they
# share one block, the memory pattern, and the first allocations remain. Fragmentation adds a twentieth.
_ARENA_FACTOR = 2.1


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model is served."""

    context: int  # tokens of each sequence, prompt and answer
    sequences: int  # that run at once
    kv: KvType
    chunk_tokens: int  # of a prompt, read in one step
    num_threads: int
    kernels: Kernels = Kernels.NATIVE


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of a serving process, in bytes, by purpose."""

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
        """The process's resident memory when the context is full."""
        return self.required + self.read_once_weights + self.embedding

    @property
    def required(self) -> int:
        """The memory that full speed needs: without pages of files that are not read again."""
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
    config: ModelConfig, items: Sequence[WeightItem], choice: TargetChoice, kernels: Kernels
) -> LoadedWeights:
    """Memory of weights when a session loads them."""
    loaded = list(items)
    for name, other in tied_weights(config).items():  # each is loaded separately
        item = next(item for item in items if item.weights[0].name == other)
        loaded.append(WeightItem(name, (WeightPart(name, item.weights[0].shape),), item.storage))
    total = LoadedWeights()
    multiplied = []
    for item in loaded:
        if item.role is Role.EMBEDDING:
            total += LoadedWeights(on_demand=item.num_bytes)
        elif item.role is Role.VECTOR:
            total += LoadedWeights(mapped=item.num_bytes)
        else:
            multiplied.append(item)
    native = kernels is not Kernels.ONNXRUNTIME
    return total + choice.target.load(multiplied, choice.activations, native=native)


def tokenizer_memory(artifact: ArtifactSize) -> int:
    """Bytes of a server's tokenizer. A mapped one is counted with all of its file."""
    mapped = artifact.file_bytes(VOCABULARY_FILE)
    if mapped:
        return mapped + _MAPPED_TOKENIZER_BYTES
    return int(_LOADED_TOKENIZER_FACTOR * artifact.file_bytes(TOKENIZER_FILE))


def memory_use(
    config: ModelConfig, loaded: LoadedWeights, states: StateSizes, tokenizer: int, serving: Serving
) -> MemoryUse:
    """Memory of a process once its sequences are as long as `serving.context`; tokenizer: see tokenizer_memory()."""
    kv = serving.sequences * serving.context * states.kv_bytes_per_token(serving.kv)
    logits = _FLOAT * config.vocab_size * serving.sequences
    return MemoryUse(
        context=serving.context,
        process=PROCESS_BYTES,
        session=_LAYER_BYTES * config.num_hidden_layers,
        tokenizer=tokenizer,
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
    """Intermediate tensors of the largest step in the arena: a chunk of a prompt, or a token of each sequence."""
    tokens = min(serving.chunk_tokens, serving.context)
    intermediates = max(tokens, serving.sequences) * held_values(config) * _FLOAT
    # Each thread sums its experts' outputs in a separate buffer.
    copies = serving.num_threads * tokens * config.hidden_size * _FLOAT if config.num_experts else 0
    return int(_ARENA_FACTOR * intermediates) + copies


def held_values(config: ModelConfig) -> int:
    """Values that a step holds for each of its tokens.

    The next layer that needs a buffer of the same shape reuses it, and the buffer is freed after the last such layer.
    So a step holds the buffers of one layer of each kind. If no linear layer follows full attention, the buffers of
    linear layers are freed before it.
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
        joined = hidden * config.intermediate_size <= LARGE
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
    """The most that huge pages add: one for each stripe of keys or values and for each layer's recurrent states."""
    return _HUGE_PAGE * (states.num_kv_stripes * serving.sequences + states.num_linear_layers)
