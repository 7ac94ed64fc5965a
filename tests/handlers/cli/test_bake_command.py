"""`qwonnx export --prefix`, `bake`, `inspect` on real exports: a new process continues exactly from baked prefixes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.cache.baked_prefixes import load
from qwonnx.runtime.cache.hybrid_cache import HybridCache
from qwonnx.runtime.cache.rows import is_growing, row_bytes
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.model.runner import ModelRunner
from qwonnx.runtime.model.session import Session
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.scheduling.sequence import Sequence, StepPlan
from qwonnx.runtime.settings import RuntimeSettings
from tests.handlers.cli.commands import error_line, qwonnx, running

SYSTEM = "You are the keeper of a small museum of clocks. " * 12
TOOL = {"type": "function", "function": {"name": "wind", "parameters": {"type": "object", "properties": {}}}}
QUESTION: Any = {"role": "user", "content": "Which clock is the oldest?"}
SETTINGS = RuntimeSettings(num_threads=1, max_num_seqs=2, max_model_len=1024)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A text, and the same with a tool."""
    folder = tmp_path_factory.mktemp("prompts")
    text, agent = folder / "system.txt", folder / "agent.json"
    text.write_text(SYSTEM)
    agent.write_text(json.dumps({"messages": [{"role": "system", "content": SYSTEM}], "tools": [TOOL]}))
    return [text, agent]


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, prompts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in float32 with both prompts. Read only: copy it to change it."""
    out = tmp_path_factory.mktemp("exported") / "artifact"
    options = [part for path in prompts for part in ("--prefix", path)]
    result = qwonnx("export", tiny_checkpoint, out, "--weights", "fp32", *options)
    assert result.returncode == 0, result.stderr
    for path in prompts:
        assert re.search(rf"^{path}: \d+ tokens, .* in {out}/prefixes/[0-9a-f]+\.capsule$", result.stdout, re.MULTILINE)
    return out


@pytest.fixture
def artifact(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "artifact"))


def lengths(folder: Path) -> list[int]:
    return sorted(len(capsule.token_ids) for capsule in load(open_artifact(folder), 1023))


def ask(client: openai.OpenAI, messages: list[Any], tools: list[Any]) -> tuple[str, int]:
    """The greedy answer of a served artifact, and how many tokens it need not compute."""
    (model,) = client.models.list()
    options: Any = {"tools": tools} if tools else {}
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    answer = client.chat.completions.create(
        model=model.id, messages=messages, temperature=0, max_tokens=24, extra_body=extra, **options
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    return answer.choices[0].message.content or "", answer.usage.prompt_tokens_details.cached_tokens or 0


def served_answers(folder: Path) -> list[tuple[str, int]]:
    """Answers of a new process in three chats: with the system prompt, with its tool too, and without either."""
    with running("serve", folder, "--port", 0, "--max-model-len", 1024) as process:
        assert process.stdout is not None
        url = next(found[1] for line in process.stdout if (found := re.search(r" at (http://\S+/v1) ", line)))
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            system = {"role": "system", "content": SYSTEM}
            chats: list[tuple[list[Any], list[Any]]] = [
                ([system, QUESTION], []),
                ([system, QUESTION], [TOOL]),
                ([QUESTION], []),
            ]
            return [ask(client, messages, tools) for messages, tools in chats]


def test_a_new_server_answers_the_openai_client_alike_without_reading_the_system_prompt(artifact: Path) -> None:
    baked, num_tokens = served_answers(artifact), lengths(artifact)
    assert [cached for _, cached in baked] == [*num_tokens, 0]
    assert min(num_tokens) > 100
    shutil.rmtree(artifact / "prefixes")
    fresh = served_answers(artifact)
    assert [cached for _, cached in fresh] == [0, 0, 0]
    assert [text for text, _ in fresh] == [text for text, _ in baked]
    assert all(text for text, _ in fresh)


def test_states_from_the_file_give_the_logits_of_fresh_ones(exported: Path) -> None:
    opened = open_artifact(exported)
    states = opened.decoder.states
    capsule = max(load(opened, 1023), key=lambda each: len(each.token_ids))
    tokens = [*capsule.token_ids, *np.random.default_rng(0).integers(0, 400, 40).tolist()]
    cache = HybridCache(states, max_num_seqs=2, max_model_len=1024)
    session = Session(opened.file("decoder.onnx"), SETTINGS)
    runner = ModelRunner(session, states, cache, 2, 1024, opened.manifest.model.vocab_size)
    cache.restore(1, [cache.buffers.from_host(len(capsule.token_ids), capsule.parts)])

    def logits(row: int, start: int) -> np.ndarray:
        plan = StepPlan(row, (Sequence("any", tokens, len(tokens), num_computed=start),), len(tokens) - start, True)
        (logits,) = runner.run(plan)
        return logits.read_all()[None].copy()

    np.testing.assert_allclose(logits(1, len(capsule.token_ids)), logits(0, 0), atol=1e-4)


def test_a_quantised_cache_is_baked_as_it_is(long_checkpoint: Path, prompts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    export_checkpoint(long_checkpoint, out, ExportOptions(weights="fp32", kv="int4"))
    assert qwonnx("bake", out, prompts[0]).returncode == 0
    (capsule,) = load(open_artifact(out), 1023)
    states = open_artifact(out).decoder.states
    assert {spec.dtype for spec in states if is_growing(spec)} == {"uint8"}
    assert [len(part) for part in capsule.parts] == [row_bytes(spec, len(capsule.token_ids)) for spec in states]
    prompt = [*capsule.token_ids, *range(30, 60)]
    answers = []
    for expected in (len(capsule.token_ids), 0):
        with Engine.open(out, SETTINGS) as engine:
            outputs = list(engine.generate(prompt, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)))
        assert outputs[-1].num_cached_tokens == expected
        answers.append([token for output in outputs for token in output.token_ids])
        shutil.rmtree(out / "prefixes", ignore_errors=True)
    assert answers[0] == answers[1]


def test_an_export_over_it_keeps_nothing_of_what_was_baked(artifact: Path, tiny_checkpoint: Path) -> None:
    before = open_artifact(artifact).id
    export_checkpoint(tiny_checkpoint, artifact, ExportOptions(weights="fp32", overwrite=True))
    assert open_artifact(artifact).id == before
    assert not (artifact / "prefixes").exists()


def test_inspect_lists_what_is_baked_and_says_what_is_not_used(artifact: Path, tiny_checkpoint: Path) -> None:
    shown = qwonnx("inspect", artifact, "--verify")
    assert shown.returncode == 0, shown.stderr
    assert "Baked prefixes" in shown.stdout
    begins = ("system You are the keeper of a small mus", "system # Tools You have access to the fo")
    for num_tokens, text in zip(lengths(artifact), begins, strict=True):
        assert re.search(rf"\b{num_tokens}\b\b.*B .*{text} \.\.\. .*museum of clocks\.", shown.stdout), shown.stdout
    verified = qwonnx("verify", artifact, "--against", tiny_checkpoint, "--max-kl", 0.01)
    assert verified.returncode == 0, verified.stderr
    damaged = sorted((artifact / "prefixes").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert "the size of the capsule does not match its tokens" in qwonnx("inspect", artifact).stdout
    assert f"{damaged} is not used: " in error_line(qwonnx("inspect", artifact, "--verify"))
    generated = qwonnx("generate", artifact, "--chat", "Hi", "--system", SYSTEM, "--max-tokens", 2)
    assert generated.returncode == 0
    assert f"{damaged} is not used: " in generated.stderr
    shutil.rmtree(artifact / "prefixes")
    assert "Baked prefixes" not in qwonnx("inspect", artifact).stdout


def test_prompts_are_added_found_there_and_replaced(artifact: Path, prompts: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Be brief.")
    files = {path: path.read_bytes() for path in (artifact / "prefixes").iterdir()}
    again = qwonnx("bake", artifact, *prompts)
    assert (again.returncode, again.stdout.count(", already baked\n")) == (0, 2), again.stderr
    assert qwonnx("bake", artifact, other).returncode == 0
    assert len(lengths(artifact)) == 3
    assert {path: path.read_bytes() for path in files} == files
    replaced = qwonnx("bake", artifact, prompts[0], other, "--replace")
    assert replaced.stdout.count("removed ") == 1
    assert len(lengths(artifact)) == 2
    assert qwonnx("bake", artifact, "--replace").stdout.count("removed ") == 2
    assert lengths(artifact) == []
    assert qwonnx("bake", artifact, prompts[0]).returncode == 0
    (path,) = (artifact / "prefixes").iterdir()
    assert path.read_bytes() == files[path]


def test_what_cannot_be_baked_is_one_line(exported: Path, prompts: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"messages": [{"role": "user", "content": "Hi"}]}')
    missing, out = tmp_path / "missing.txt", tmp_path / "out"
    assert "give a FILE" in error_line(qwonnx("bake", exported))
    assert f"cannot read {missing}" in error_line(qwonnx("bake", exported, missing))
    assert "is not an artifact" in error_line(qwonnx("bake", tmp_path, prompts[0]))
    for command in (["bake", exported, broken], ["export", tmp_path / "checkpoint", out, "--prefix", broken]):
        assert f"{broken}: messages[0] has the role user" in error_line(qwonnx(*command))
    assert not out.exists()
