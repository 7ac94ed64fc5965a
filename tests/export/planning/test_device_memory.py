"""Memory of a card: what was counted over a CUDA runtime that computes nothing, for published geometries cut short."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from qwonnx.export.checkpoint.config import parse_config
from qwonnx.export.planning.artifact_size import CopiedFiles
from qwonnx.export.planning.device_memory import DeviceUse, device_use
from qwonnx.export.planning.resident_memory import Serving
from qwonnx.export.planning.states import state_sizes
from qwonnx.export.planning.stored_model import named_recipe, store_model
from qwonnx.export.targets.register import choose_target
from tests.checkpoints.published import PUBLISHED

pytestmark = pytest.mark.fast


@dataclass(frozen=True, slots=True)
class Counted:
    """MB that a loaded session holds, that eight rows of 4,096 tokens take with a spare one, and that warming adds."""

    size: str
    num_layers: int  # one of them full attention
    kv: str
    chunk_tokens: int
    weights: float
    rows: float
    work: float


COUNTED = (
    Counted("35B-A3B", 4, "float16", 512, 2942.296, 133.448, 759.4),
    Counted("35B-A3B", 4, "float16", 2048, 2942.296, 133.448, 1373.6),
    Counted("122B-A10B", 2, "float16", 512, 4391.318, 113.910, 2106.6),
    Counted("9B", 2, "float16", 512, 2473.962, 170.312, 482.3),
    Counted("27B", 2, "int8", 512, 3229.234, 104.362, 698.4),
    Counted("27B", 2, "int8", 2048, 3229.234, 104.362, 1363.1),
    Counted("0.8B", 2, "float16", 64, 585.266, 85.266, 99.1),
)


def use_of(counted: Counted) -> DeviceUse:
    document = PUBLISHED[counted.size].config()
    kinds = [*["linear_attention"] * (counted.num_layers - 1), "full_attention"]
    document["text_config"].update({"num_hidden_layers": counted.num_layers, "layer_types": kinds})
    config, choice = parse_config(document), choose_target("cuda", kv=counted.kv)
    model = store_model(config, named_recipe("cuda"), CopiedFiles.estimated(config), choice)
    serving = Serving(4096, sequences=8, kv=choice.kv, chunk_tokens=counted.chunk_tokens, num_threads=1)
    return device_use(config, model, state_sizes(config, choice.state_layout), serving)


@pytest.mark.parametrize("counted", COUNTED, ids=lambda counted: f"{counted.size}-{counted.chunk_tokens}")
def test_weights_and_rows_are_exact_and_work_is_a_bound(counted: Counted) -> None:
    use = use_of(counted)
    assert use.weights / 1e6 == pytest.approx(counted.weights, abs=0.02)
    assert use.rows / 1e6 == pytest.approx(counted.rows, abs=0.02)
    assert counted.work < use.work / 1e6 < 2 * counted.work


def test_what_is_needed_leaves_room_for_steps_and_for_loading() -> None:
    use = use_of(COUNTED[0])
    left = use.required - use.driver - use.weights
    assert left >= max(use.rows + use.logits + use.work, use.rows / 0.86, use.loading)
