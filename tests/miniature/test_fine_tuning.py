"""From training to serving: the miniature learns names and a tool, and answers right in int4, merged and by a slot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from infra.miniature import fine_tuning, glossary, tool_calls
from infra.miniature.checkpoint import TRAINED
from infra.miniature.conversation import Example
from infra.miniature.suite import write_suite
from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.evaluation.artifact_subject import ArtifactSubject
from qwonnx.export.evaluation.run import evaluate
from qwonnx.export.evaluation.suite import Suite, read_suite
from qwonnx.runtime import RuntimeSettings

NUM_OLD = 96  # of each old task
SETTINGS = RuntimeSettings(num_threads=2, max_num_seqs=8)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fine-tuned") / "adapter"
    fine_tuning.fine_tune(out)
    return out


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Suite]:
    folder = tmp_path_factory.mktemp("suites")
    examples: dict[str, Sequence[Example]] = {
        "new": [*fine_tuning.new_facts(12, 1), *fine_tuning.new_calls(12, 1)],
        "old": [*glossary.held_out(NUM_OLD, 7), *tool_calls.held_out(NUM_OLD, 7)],
    }
    for name, each in examples.items():
        write_suite(folder / f"{name}.jsonl", each)
    return {name: read_suite(folder / f"{name}.jsonl") for name in examples}


def right(artifact: Path, suite: Suite, settings: RuntimeSettings = SETTINGS, adapter: str = "") -> dict[str, int]:
    """Right answers by task."""
    evaluated = evaluate(ArtifactSubject(artifact, settings, adapter), suite, suite.questions, None)
    return dict(Counter(outcome.question.task for outcome in evaluated.outcomes if outcome.right))


def test_a_merged_adapter_and_one_in_a_slot_know_the_new_and_the_old(
    adapter: Path, suites: dict[str, Suite], tmp_path: Path
) -> None:
    base, merged = tmp_path / "base", tmp_path / "merged"
    export_checkpoint(TRAINED, base, ExportOptions(runtime_adapters=("all",)))
    export_checkpoint(TRAINED, merged, ExportOptions(adapters=(adapter,)))
    before = right(base, suites["old"])
    with_slot = RuntimeSettings(num_threads=2, max_num_seqs=8, adapters=(f"tuned={adapter}",))
    assert sum(right(base, suites["new"]).values()) <= 2, "nobody told it these names and this tool"
    for artifact, settings, name in ((merged, SETTINGS, ""), (base, with_slot, "tuned")):
        assert right(artifact, suites["new"], settings, name) == {"glossary": 12, "tools": 12}
        old = right(artifact, suites["old"], settings, name)
        lost = {task: before[task] - old[task] for task in before}
        assert sum(lost.values()) <= 0.01 * 2 * NUM_OLD, lost
    assert right(base, suites["old"], with_slot) == before, "an adapter that is there changes no other answer"
