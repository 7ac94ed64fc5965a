"""From training to serving: the miniature learns names, and knows them in int4, merged and by a slot."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from infra.miniature import fine_tuning, tool_calls
from infra.miniature.checkpoint import TRAINED
from infra.miniature.suite import write_suite
from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.evaluation.artifact_subject import ArtifactSubject
from qwonnx.export.evaluation.run import evaluate
from qwonnx.export.evaluation.suite import Suite, read_suite
from qwonnx.runtime import RuntimeSettings

pytestmark = pytest.mark.soak  # it trains for a minute

NUM_NEW, NUM_TOOLS = 12, 24
SETTINGS = RuntimeSettings(num_threads=2, max_num_seqs=8)


def right(artifact: Path, suite: Suite, settings: RuntimeSettings = SETTINGS, adapter: str = "") -> dict[str, int]:
    """Right answers by task."""
    evaluated = evaluate(ArtifactSubject(artifact, settings, adapter), suite, suite.questions, None)
    return dict(Counter(outcome.question.task for outcome in evaluated.outcomes if outcome.right))


def test_a_merged_adapter_and_one_in_a_slot_know_the_new_names_and_the_tools(tmp_path: Path) -> None:
    adapter, base, merged, asked = (tmp_path / name for name in ("adapter", "base", "merged", "asked.jsonl"))
    fine_tuning.fine_tune(adapter)
    export_checkpoint(TRAINED, base, ExportOptions(runtime_adapters=("all",)))
    export_checkpoint(TRAINED, merged, ExportOptions(adapters=(adapter,)))
    write_suite(asked, [*fine_tuning.new_facts(NUM_NEW, 1), *tool_calls.held_out(NUM_TOOLS, 7)])
    suite = read_suite(asked)
    before = right(base, suite)
    assert before.get("glossary", 0) == 0, "nobody told it these names"
    with_slot = RuntimeSettings(num_threads=2, max_num_seqs=8, adapters=(f"tuned={adapter}",))
    for artifact, settings, name in ((merged, SETTINGS, ""), (base, with_slot, "tuned")):
        after = right(artifact, suite, settings, name)
        assert after["glossary"] == NUM_NEW
        assert after["tools"] >= before["tools"] - 1
    assert right(base, suite, with_slot) == before, "an adapter that is there changes no other answer"
