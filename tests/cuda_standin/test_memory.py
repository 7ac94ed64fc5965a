"""Memory of a device: what ONNX Runtime and the engine really ask for, beside the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.planning.device_memory import device_use
from qwonnx.export.planning.resident_memory import Serving
from qwonnx.export.planning.source import open_source
from qwonnx.export.planning.states import state_sizes
from qwonnx.export.planning.stored_model import named_recipe, store_model
from qwonnx.export.targets.register import choose_target
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from tests.cuda_standin.stand_in import EventKind, Recording, StandIn
from tests.runtime.engine.engine_driver import Received, drive

CHECKPOINT = Path(__file__).parent.parent / "miniature" / "checkpoint"
SETTINGS = RuntimeSettings(max_num_seqs=4, max_num_batched_tokens=256, max_model_len=2048)
ARENA_BYTES = 2 << 20  # that small buffers share


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained miniature in the target's own recipe."""
    folder = tmp_path_factory.mktemp("memory") / "artifact"
    export_checkpoint(CHECKPOINT, folder, ExportOptions(target="cuda"))
    return folder


def taken(recording: Recording) -> int:
    """Bytes that the device has less, after what was recorded."""
    signs = {EventKind.ALLOCATE: 1, EventKind.FREE: -1}
    return sum(signs.get(event.kind, 0) * event.num_bytes for event in recording.events)


def test_the_plan_has_weights_and_rows_exactly_and_the_rest_as_a_bound(artifact: Path, standin: StandIn) -> None:
    """Raw weights that a kernel has packed are given back, or the first number would be half as large again."""
    source, choice = open_source(str(CHECKPOINT)), choose_target("cuda")
    model = store_model(source.config, named_recipe("cuda"), source.copied, choice)
    serving = Serving(context=2048, sequences=4, kv=choice.kv, chunk_tokens=256, num_threads=1)
    use = device_use(source.config, model, state_sizes(source.config, choice.state_layout), serving)
    with standin.recording() as opening:
        engine = Engine.open(artifact, SETTINGS)
    with engine:
        with standin.recording() as warming:
            engine.capture()
        logits = 4 * source.config.vocab_size * SETTINGS.max_num_seqs
        assert taken(opening) == pytest.approx(use.weights + use.rows + logits, rel=0.01)
        assert 0.2 * use.work < taken(warming) < use.work + use.logits + ARENA_BYTES


def test_a_warm_engine_takes_no_more_memory(artifact: Path, standin: StandIn) -> None:
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    with Engine.open(artifact, SETTINGS) as engine:
        engine.capture()
        with standin.recording() as recording:
            for length in (1, 64, 256, 700):
                engine.submit([70] * length, params, Received())
            drive(engine)
        assert not recording.of(EventKind.REFUSAL)
        assert taken(recording) == 0
