"""Memory of weights in ONNX Runtime: the formulas, and the kernels' real packing in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from qwonnx.export.checkpoint.config import ModelConfig, parse_config
from qwonnx.export.checkpoint.weight_part import WeightPart
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.planning.decoder_weights import planned_weights
from qwonnx.export.planning.resident_memory import (
    Serving,
    held_values,
    load_weights,
    memory_use,
    work_bytes,
)
from qwonnx.export.planning.states import state_sizes
from qwonnx.export.quantization.recipe import FLOAT32, Recipe, Rule, WeightStorage
from qwonnx.export.targets.register import choose_target
from qwonnx.export.targets.target import LoadedWeights
from qwonnx.export.weight_files.weight_item import WeightItem
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.native.library import DOMAIN
from tests.checkpoints.published import PUBLISHED

SERVING = Serving(context=4096, sequences=1, kv=KvType.FLOAT32, chunk_tokens=512, num_threads=2)
ROWS, COLUMNS = 6144, 4096

# Opens a session that packs nothing, then another, and prints the change of the process's memory by the second.
LOAD = """
import json, re, sys
from pathlib import Path
from qwonnx.runtime.model.session import Session
from qwonnx.runtime.settings import RuntimeSettings

def read(weights):
    sums, path = {"anonymous": 0, "mapped": 0, "resident": 0}, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            path = line.rpartition(" ")[2]
        elif field := re.match(r"(Size|Rss|Anonymous): +([0-9]+) kB", line):
            name, size = field[1], int(field[2]) * 1024
            sums["anonymous"] += size if name == "Anonymous" else 0
            if path == weights:
                sums["mapped"] += size if name == "Size" else 0
                sums["resident"] += size if name == "Rss" else 0
    return sums

first, second = map(Path, sys.argv[1:3])
settings = RuntimeSettings(num_threads=2, kernels=sys.argv[3])
weights = str(second.with_name("weights.bin"))
warm = Session(first, RuntimeSettings(num_threads=2))
before = read(weights)
session = Session(second, settings, ["QuantizedLinear"])
after = read(weights)
print(json.dumps({name: after[name] - before[name] for name in after}))
"""


def config_of(size: str) -> ModelConfig:
    return parse_config(PUBLISHED[size].config())


@pytest.mark.parametrize(
    ("storage", "activations", "kernels"),
    [
        (FLOAT32, "int8", Kernels.ONNXRUNTIME),
        (WeightStorage(4, 128), "int8", Kernels.ONNXRUNTIME),
        (WeightStorage(8, 32), "int8", Kernels.ONNXRUNTIME),
        (WeightStorage(4, 128), "float32", Kernels.ONNXRUNTIME),
        (WeightStorage(8, 32), "float32", Kernels.ONNXRUNTIME),
        (WeightStorage(4, 128), "int8", Kernels.NATIVE),
    ],
)
def test_a_session_packs_and_maps_what_the_plan_says(
    tmp_path: Path, storage: WeightStorage, activations: str, kernels: Kernels, request: pytest.FixtureRequest
) -> None:
    if kernels is Kernels.NATIVE:
        request.getfixturevalue("library")
    if not Path("/proc/self/smaps").exists():
        pytest.skip("memory can only be looked into on Linux")
    nothing_packed = _product(tmp_path / "warm", WeightStorage(8, 32), 1, Kernels.ONNXRUNTIME)
    model = _product(tmp_path / "model", storage, 4 if activations == "int8" else 1, kernels)
    command = [sys.executable, "-c", LOAD, str(nothing_packed), str(model), kernels]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    name = "layers.0.mlp.up_proj.weight"
    weight = WeightItem(name, (WeightPart(name, (ROWS, COLUMNS)),), storage)
    planned = load_weights(config_of("9B"), [weight], choose_target("cpu", activations), kernels)
    # A session itself takes a little memory, and the allocator keeps that of packing for a while: some scales.
    assert -1e6 < measured["anonymous"] - planned.packed < 1.5e6 + weight.num_scale_bytes
    assert measured["mapped"] == pytest.approx(planned.mapped + planned.read_once, rel=0.01, abs=1e5)
    assert measured["resident"] == pytest.approx(planned.read_once, rel=0.01, abs=1e5)


def _product(folder: Path, storage: WeightStorage, accuracy_level: int, kernels: Kernels) -> Path:
    """A model of one product with a matrix of zeros, whose bytes lie in weights.bin."""
    folder.mkdir()
    num_values = ROWS * COLUMNS
    shapes: dict[str, tuple[int, ...]]
    if storage.is_quantized:
        blocks = COLUMNS // storage.block_size
        shapes = {"codes": (ROWS, blocks, storage.block_size * storage.bits // 8), "scales": (ROWS, blocks)}
        op_type, domain = ("MatMulNBits", "com.microsoft")
        if kernels is Kernels.NATIVE:
            op_type, domain = ("QuantizedLinear", DOMAIN)
        node = helper.make_node(op_type, ["x", "codes", "scales"], ["y"], domain=domain)
        attributes: dict[str, int] = {
            "N": ROWS,
            "K": COLUMNS,
            "bits": storage.bits,
            "block_size": storage.block_size,
            "accuracy_level": accuracy_level,
        }
    else:
        shapes, attributes = {"matrix": (ROWS, COLUMNS)}, {"transB": 1}
        node = helper.make_node("FusedMatMul", ["x", "matrix"], ["y"], domain="com.microsoft")
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    sizes = [storage.num_code_bytes(num_values), storage.num_scale_bytes(num_values)]
    initializers, offset = [], 0
    for (name, shape), size in zip(shapes.items(), sizes, strict=False):
        data_type = TensorProto.UINT8 if name == "codes" else TensorProto.FLOAT
        tensor = TensorProto(name=name, data_type=data_type, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, text in (("location", "weights.bin"), ("offset", str(offset)), ("length", str(size))):
            tensor.external_data.add(key=key, value=text)
        initializers.append(tensor)
        offset += size
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(offset)
    described = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "product",
        [described("x", TensorProto.FLOAT, ["tokens", COLUMNS])],
        [described("y", TensorProto.FLOAT, ["tokens", ROWS])],
        initializers,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 21), ("com.microsoft", 1), (DOMAIN, 1))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_parts_add_up_and_only_keys_and_values_grow_with_the_context() -> None:
    config = config_of("35B-A3B")
    stored = planned_weights(config, Recipe.preset("int4"), choose_target())
    weights = load_weights(config, stored, choose_target(), Kernels.ONNXRUNTIME)
    states = state_sizes(config)
    short = memory_use(config, weights, states, 1_000_000, SERVING)
    long = memory_use(config, weights, states, 1_000_000, replace(SERVING, context=8192))
    assert long.required - short.required == 4096 * states.kv_bytes_per_token(KvType.FLOAT32) == long.kv - short.kv
    assert short.resident - short.required == short.read_once_weights + short.embedding
    two = memory_use(config, weights, states, 1_000_000, replace(SERVING, sequences=2))
    assert two.kv == 2 * short.kv
    assert two.states == 2 * short.states == 2 * states.fixed_bytes
    small = memory_use(config, weights, states, 1_000_000, replace(SERVING, kv=KvType.INT4))
    assert 8 * small.kv == short.kv


def test_a_longer_chunk_needs_work_buffers_in_proportion_and_a_short_context_caps_it() -> None:
    config = config_of("9B")  # no experts, whose copies depend on threads
    assert work_bytes(config, replace(SERVING, chunk_tokens=1024)) == pytest.approx(2 * work_bytes(config, SERVING))
    assert 2 * work_bytes(config, replace(SERVING, context=256)) == pytest.approx(work_bytes(config, SERVING))
    assert work_bytes(config, replace(SERVING, chunk_tokens=1, sequences=512)) == work_bytes(config, SERVING)
    moe = config_of("35B-A3B")
    more = work_bytes(moe, replace(SERVING, num_threads=3)) - work_bytes(moe, SERVING)
    assert more == 512 * moe.hidden_size * 4


def test_buffers_of_full_attention_last_only_if_a_linear_layer_follows() -> None:
    config = config_of("9B")
    four = replace(config, num_hidden_layers=4, layer_types=config.layer_types[:4])
    attention = 9 * config.num_attention_heads * config.head_dim + 6 * config.num_key_value_heads * config.head_dim
    assert held_values(config) - held_values(four) <= attention
    linear = replace(four, layer_types=("linear_attention",) * 4)
    full = replace(four, layer_types=("full_attention",) * 4)
    assert held_values(four) == max(held_values(linear), held_values(full))


@pytest.mark.parametrize(
    ("recipe", "activations", "kernels", "is_packed"),
    [
        (Recipe.preset("fp32"), "int8", Kernels.ONNXRUNTIME, False),
        (Recipe.preset("int8"), "int8", Kernels.ONNXRUNTIME, True),
        (Recipe.preset("int8"), "float32", Kernels.ONNXRUNTIME, False),
        (Recipe.preset("int4"), "float32", Kernels.ONNXRUNTIME, True),
        (Recipe("int4", 128, (Rule("*.experts.down_proj", 8),)), "float32", Kernels.ONNXRUNTIME, False),
        (Recipe("int4", 128, (Rule("*.experts.down_proj", 8),)), "int8", Kernels.ONNXRUNTIME, True),
        (Recipe.preset("int8"), "int8", Kernels.NATIVE, False),
        (Recipe.preset("int4"), "float32", Kernels.NATIVE, False),
        (Recipe("int4", 128, (Rule("*.experts.down_proj", 8),)), "int8", Kernels.NATIVE, False),
    ],
)
def test_experts_are_packed_where_a_kernel_packs_them(
    recipe: Recipe, activations: str, kernels: Kernels, is_packed: bool
) -> None:
    config = config_of("35B-A3B")
    stored = planned_weights(config, recipe, choose_target("cpu", activations))
    experts = [weight for weight in stored if ".experts." in weight.name]
    codes = sum(weight.num_code_bytes for weight in experts)
    planned = load_weights(config, stored, choose_target("cpu", activations), kernels)
    assert (planned.packed >= codes) is is_packed
    assert (planned.mapped >= codes) is not is_packed


def test_a_tied_head_is_packed_beside_the_embedding() -> None:
    untied, tied = config_of("9B"), replace(config_of("9B"), tie_word_embeddings=True)
    loads: list[LoadedWeights] = []
    for config in (untied, tied):
        stored = planned_weights(config, Recipe.preset("int8"), choose_target())
        loads.append(load_weights(config, stored, choose_target(), Kernels.ONNXRUNTIME))
    assert loads[0].packed == loads[1].packed
    assert loads[0].on_demand == loads[1].on_demand > 0
