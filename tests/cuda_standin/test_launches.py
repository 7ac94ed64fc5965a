"""Kernels that a decoding step of the 35B's layers launches, by layer, and the steps that are replayed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from infra.gpu.geometry import write_geometry
from infra.gpu.on_device.steps import Steps
from infra.gpu.seeded_weights import SeededWeights
from tests.cuda_standin.stand_in import EventKind, StandIn

MOST_LINEAR, MOST_FULL, MOST_AROUND = 24, 22, 8
# True widths. Few experts and words change no launch. Behind the last attention, rows are gathered that want logits.
LAYERS = ["linear_attention", "full_attention", "linear_attention"]
TEXT = {
    "num_hidden_layers": 3,
    "layer_types": LAYERS,
    "num_experts": 16,
    "vocab_size": 1024,
    "max_position_embeddings": 1024,
}
NORM = "SkipLayerNormKernel"  # two in a layer: one of them closes it
CAPTURED = 8


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    folder = tmp_path_factory.mktemp("launches") / "artifact"
    write_geometry(folder, text=TEXT)
    for tensor in SeededWeights.load(folder).tensors:
        with (folder / tensor.file).open("ab") as stream:
            stream.truncate(max(stream.tell(), tensor.offset + tensor.num_bytes))  # zeros, which take no space
    return Steps(folder, CAPTURED, max_model_len=64)


def test_a_layer_launches_few_kernels(steps: Steps, standin: StandIn) -> None:
    steps.read([1, 2, 3])
    steps.decode()  # the first step of a size also times the ways to multiply experts
    with standin.recording() as recording:
        steps.decode()
    steps.clear()
    kernels = [event.name for event in recording.of(EventKind.LAUNCH)]
    norms = [index for index, name in enumerate(kernels) if NORM in name]
    assert len(norms) == 2 * len(LAYERS)
    ends = norms[1::2]
    by_layer = [after - before for before, after in pairwise(ends)]
    print(f"launches: full {by_layer[0]}, linear {by_layer[1]}, step {len(kernels)}")
    assert by_layer[0] <= MOST_FULL
    assert by_layer[1] - _gathers(kernels[ends[-2] :]) <= MOST_LINEAR
    assert len(kernels) <= 2 * MOST_LINEAR + MOST_FULL + MOST_AROUND


def _gathers(kernels: Sequence[str]) -> int:
    """The kernels that pick the rows that want logits."""
    return sum("GatherKernel" in name for name in kernels)


def test_steps_of_one_to_eight_rows_are_replayed_without_a_launch_or_a_copy_of_their_own(
    steps: Steps, standin: StandIn
) -> None:
    with standin.recording() as recording:
        steps.capture()
    assert steps.num_captured == CAPTURED
    assert {event.kind for event in recording.captured()} <= {EventKind.LAUNCH, EventKind.CLEAR}
    assert not recording.of(EventKind.REFUSAL)
    for _ in range(CAPTURED):
        steps.read([1, 2])
        with standin.recording() as recording:
            steps.decode()
        assert len(recording.of(EventKind.GRAPH_LAUNCH)) == 1
        assert not recording.launches()
    steps.clear()
