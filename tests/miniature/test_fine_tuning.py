"""From training to serving: the miniature learns names and a tool, and knows them in int4, merged and by a slot."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from infra.miniature import fine_tuning, lessons
from infra.miniature.checkpoint import TRAINED
from infra.miniature.evaluate import Numbers
from infra.miniature.mixture import Mixture, Proportions
from infra.miniature.suite import write_suite, write_suites
from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.evaluation.artifact_subject import ArtifactSubject
from qwonnx.export.evaluation.run import evaluate
from qwonnx.export.evaluation.suite import Suite, read_suite
from qwonnx.runtime import RuntimeSettings

NUM_FACTS, NUM_CALLS = 12, 24
SETTINGS = RuntimeSettings(num_threads=2, max_num_seqs=8)
OLD = Numbers(glossary=512, glossary_thinking=64, tools=96, tools_thinking=32, pictures=0, retrieval={1024: 8})


def right(artifact: Path, suite: Suite, settings: RuntimeSettings = SETTINGS, adapter: str = "") -> dict[str, int]:
    """Right answers by task."""
    evaluated = evaluate(ArtifactSubject(artifact, settings, adapter), suite, suite.questions, None)
    return dict(Counter(outcome.question.task for outcome in evaluated.outcomes if outcome.right))


@pytest.mark.soak  # it trains for a minute or two, and asks two thousand questions
def test_a_merged_adapter_and_one_in_a_slot_know_what_is_new_and_forget_nothing(tmp_path: Path) -> None:
    adapter, base, merged = (tmp_path / name for name in ("adapter", "base", "merged"))
    fine_tuning.fine_tune(adapter)
    export_checkpoint(TRAINED, base, ExportOptions(runtime_adapters=("all",)))
    export_checkpoint(TRAINED, merged, ExportOptions(adapters=(adapter,)))
    write_suite(tmp_path / "new.jsonl", [*lessons.new_facts(NUM_FACTS, 1), *lessons.new_calls(NUM_CALLS, 1)])
    mixture = Mixture(Tokenizer.from_file(str(TRAINED / "tokenizer.json")), 7, Proportions())
    write_suites(tmp_path / "old.jsonl", mixture, 7, OLD)
    new, old = read_suite(tmp_path / "new.jsonl"), read_suite(tmp_path / "old.jsonl")
    before = right(base, old)
    allowed = sum(before.values()) - len(old.questions) // 100
    assert right(base, new) == {}, "nobody told it these names and this tool"
    with_slot = RuntimeSettings(num_threads=2, max_num_seqs=8, adapters=(f"tuned={adapter}",))
    for artifact, settings, name in ((merged, SETTINGS, ""), (base, with_slot, "tuned")):
        learnt = right(artifact, new, settings, name)
        assert learnt["glossary"] == NUM_FACTS
        assert learnt["tools"] >= NUM_CALLS - 2
        kept = right(artifact, old, settings, name)
        print(f"{name or 'merged'}: new {learnt}, old {kept} of {before}")
        assert sum(kept.values()) >= allowed, "one point of the old answers at most"
    assert right(base, new, with_slot) == {}, "an adapter that is there changes no answer of the base"
