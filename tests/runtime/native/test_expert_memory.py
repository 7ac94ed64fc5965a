"""Experts that take turns in memory: the same bits, within the limit, and the most used ones stay."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qwonnx.runtime.native.expert_memory import ExpertMemory
from qwonnx.runtime.native.library import DOMAIN, NativeLibrary
from tests.runtime.native.reference import Weight, random_weight

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs madvise")

NUM_LAYERS, NUM_EXPERTS, TOP_K, HIDDEN, INNER, BLOCK = 2, 16, 2, 256, 256, 32
_PAGEOUT = 21  # of Linux's madvise(2)
_AROUND = 512 << 10  # the system also maps neighbours of a page, 64 KiB at once, if it has them still


@dataclass(frozen=True, slots=True)
class Layers:
    """Two layers of experts whose weights are in a file, as ONNX Runtime maps them."""

    sessions: list[onnxruntime.InferenceSession]  # one, or none after it was closed
    memory: ExpertMemory
    weights: Path

    def run(self, x: NDArray[np.float32], *logits: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        feeds = {"x": x, **{f"logits{index}": each for index, each in enumerate(logits)}}
        return [np.asarray(output) for output in self.sessions[0].run(None, feeds)]

    @property
    def expert_bytes(self) -> int:
        return self.memory.layers()[0].bytes_each

    def mapped_bytes(self) -> int:
        """Bytes of the file that this process has in its memory."""
        total, counts = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            fields = line.split()
            if not fields[0].endswith(":"):
                counts = fields[-1] == str(self.weights)
            elif counts and fields[0] == "Rss:":
                total += int(fields[1]) * 1024
        return total

    def page_out(self) -> None:
        """What the system does when others need the memory."""
        libc = ctypes.CDLL(None)
        for layer in self.memory.layers():
            for part in layer.parts:
                size = ctypes.c_size_t(part.bytes_each * layer.num_experts)
                assert libc.madvise(ctypes.c_void_p(part.address), size, _PAGEOUT) == 0


@pytest.fixture
def layers(library: NativeLibrary, tmp_path: Path) -> Layers:
    random = np.random.default_rng(7)
    nodes, constants = [], []
    for layer in range(NUM_LAYERS):
        gate_up: Weight = random_weight(random, (NUM_EXPERTS, 2 * INNER, HIDDEN), 4, BLOCK, False)
        down: Weight = random_weight(random, (NUM_EXPERTS, HIDDEN, INNER), 4, BLOCK, False)
        tensors = {**gate_up.tensors(f"gate_up{layer}"), **down.tensors(f"down{layer}")}
        constants += [numpy_helper.from_array(value, name) for name, value in tensors.items()]
        attributes: dict[str, Any] = {"top_k": TOP_K, "gate_up_bits": 4, "down_bits": 4, "accuracy_level": 4}
        inputs = ["x", f"logits{layer}", *tensors]
        nodes.append(helper.make_node("QuantizedExperts", inputs, [f"y{layer}"], domain=DOMAIN, **attributes))
    names = ["x", *(f"logits{layer}" for layer in range(NUM_LAYERS))]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [helper.make_tensor_value_info(f"y{layer}", TensorProto.FLOAT, None) for layer in range(NUM_LAYERS)],
        constants,
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save_model(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin")
    with (tmp_path / "weights.bin").open("rb") as file:
        os.fsync(file)  # the system does not drop a page that it has still to write
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    library.register(options)
    memory = library.expert_memory()
    with memory.collect():
        made = [onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])]
    return Layers(made, memory, tmp_path / "weights.bin")


def chosen(*experts: int) -> NDArray[np.float32]:
    """Router logits of one token that goes to these experts, the first ones first."""
    logits = np.full((1, NUM_EXPERTS), -9, np.float32)
    for place, expert in enumerate(experts):
        logits[0, expert] = -float(place)
    return logits


def random_inputs(seed: int, num_tokens: int) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    shapes = [(num_tokens, HIDDEN), *[(num_tokens, NUM_EXPERTS)] * NUM_LAYERS]
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def test_without_a_limit_uses_are_counted_and_nothing_else_happens(layers: Layers) -> None:
    inputs = random_inputs(1, 40)
    layers.run(*inputs)
    for uses, logits in zip(layers.memory.uses(), inputs[1:], strict=True):
        expected = np.bincount(np.argsort(-logits, axis=1)[:, :TOP_K].ravel(), minlength=NUM_EXPERTS)
        assert uses == expected.tolist()
    account = layers.memory.account()
    assert account.limit_bytes is None
    assert account.needed > 0
    assert account.read == account.dropped == account.resident_bytes == 0


@pytest.mark.parametrize("can_ask", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_outputs_under_a_limit_have_the_same_bits_and_memory_keeps_it(
    layers: Layers, share: float, can_ask: bool
) -> None:
    every = [random_inputs(seed, num_tokens) for seed, num_tokens in enumerate((1, 1, 5, 64, 1, 1, 300, 1))]
    expected = [layers.run(*inputs) for inputs in every]
    total = NUM_LAYERS * NUM_EXPERTS * layers.expert_bytes
    limit = int(share * total)
    layers.page_out()
    drops = layers.mapped_bytes() == 0  # a file system in memory does not
    assert layers.memory.limit(limit, can_ask=can_ask)
    for inputs, right in zip(every, expected, strict=True):
        for output, wanted in zip(layers.run(*inputs), right, strict=True):
            assert output.tobytes() == wanted.tobytes()
        # What the last layer needed stays until the next one runs.
        needed = NUM_EXPERTS if len(inputs[0]) > 1 else TOP_K
        assert layers.memory.account().resident_bytes <= max(limit, needed * layers.expert_bytes)
        if drops:
            assert layers.mapped_bytes() <= max(limit, needed * layers.expert_bytes) + _AROUND
    if share == 1.0:
        assert layers.memory.account().dropped == 0


def test_experts_that_are_used_often_stay(layers: Layers) -> None:
    x = np.ones((1, HIDDEN), np.float32)
    layers.memory.limit(8 * layers.expert_bytes, can_ask=True)
    for _ in range(20):
        layers.run(x, chosen(0, 1), chosen(2, 3))
    for other in range(4, NUM_EXPERTS):  # each once, together more than there is room for
        layers.run(x, chosen(other, 0), chosen(other, 2))
    before = layers.memory.account().read
    layers.run(x, chosen(0, 1), chosen(2, 3))
    assert layers.memory.account().read == before
    # What was used long ago makes room at last.
    for _ in range(200):
        layers.run(x, chosen(8, 9), chosen(10, 11))
        layers.run(x, chosen(12, 13), chosen(14, 15))
    before = layers.memory.account().read
    layers.run(x, chosen(8, 9), chosen(10, 11))
    layers.run(x, chosen(12, 13), chosen(14, 15))
    assert layers.memory.account().read == before


def test_reading_ahead_begins_with_the_most_used_experts_and_ends_at_the_limit(layers: Layers) -> None:
    shares = [[0.0] * NUM_EXPERTS for _ in range(NUM_LAYERS)]
    shares[0][5], shares[1][7], shares[1][9] = 0.5, 0.9, 0.4
    layers.memory.expect(shares)
    layers.memory.limit(3 * layers.expert_bytes, can_ask=True)
    assert [layers.memory.fill() for _ in range(4)] == [True, True, True, False]
    before = layers.memory.account()
    assert (before.read, before.resident_bytes) == (3, 3 * layers.expert_bytes)
    x = np.ones((1, HIDDEN), np.float32)
    layers.run(x, chosen(5, 6), chosen(7, 9))
    assert layers.memory.account().read == before.read + 1  # number 6 of the first layer


def test_experts_that_the_system_took_are_asked_for_again(layers: Layers) -> None:
    x = np.ones((1, HIDDEN), np.float32)
    layers.memory.limit(NUM_LAYERS * NUM_EXPERTS * layers.expert_bytes, can_ask=True)
    expected = layers.run(x, chosen(0, 1), chosen(2, 3))
    layers.page_out()
    before = layers.memory.account()
    outputs = layers.run(x, chosen(0, 1), chosen(2, 3))
    assert [output.tobytes() for output in outputs] == [output.tobytes() for output in expected]
    after = layers.memory.account()
    assert (after.read - before.read, after.resident_bytes) == (4, before.resident_bytes)


def test_a_limit_that_begins_late_counts_what_was_used_before(layers: Layers) -> None:
    layers.run(*random_inputs(3, 64))
    layers.memory.limit(5 * layers.expert_bytes, can_ask=True)
    assert layers.memory.account().resident_bytes == 5 * layers.expert_bytes
    assert layers.memory.limit(None, can_ask=True)
    layers.run(*random_inputs(3, 64))
    assert layers.memory.account().limit_bytes is None


def test_the_account_outlives_its_session(layers: Layers) -> None:
    layers.memory.limit(5 * layers.expert_bytes, can_ask=True)
    layers.run(*random_inputs(3, 8))
    memory, uses = layers.memory, layers.memory.uses()
    layers.sessions.clear()
    assert memory.uses() == uses
    assert memory.account().resident_bytes == 0
    assert not memory.fill()
