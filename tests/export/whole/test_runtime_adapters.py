"""Adapters that a running model loads: every row of a step gets what the model merged with its adapter gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwonnx.export.errors import ExportError
from qwonnx.export.pipeline import ExportOptions, export_checkpoint
from qwonnx.runtime import Engine, FinishReason, RuntimeSettings, SamplingParams
from qwonnx.runtime.errors import AdapterError, CapsuleError, InvalidRequestError, SettingsError
from tests.export.adapters.trained import WEIGHTS, load, train, write_base
from tests.runtime.engine.engine_driver import Received, drive

PROMPT = list(range(40, 75))
PARAMS = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, logprobs=8)
SETTINGS = RuntimeSettings(num_threads=2, max_num_seqs=8, max_model_len=128, max_num_batched_tokens=16, spin=False)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkv", "in_proj_z", "out_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
KINDS: Mapping[str, dict[str, Any]] = {
    "all": {"r": 16, "lora_alpha": 8, "target_modules": [*LINEAR, *MLP]},
    "attention": {"r": 4, "lora_alpha": 4, "target_modules": LINEAR, "use_rslora": True},
    "mlp": {"r": 7, "lora_alpha": 14, "target_modules": MLP, "rank_pattern": {"down_proj": 3}},
    "last": {"r": 1, "lora_alpha": 2, "target_modules": ["o_proj"], "alpha_pattern": {"o_proj": 5}},
}


@dataclass(frozen=True, slots=True)
class Exports:
    """A base with slots, its adapters, and artifacts that have one of them merged."""

    base: Path
    with_slots: Path
    adapters: Mapping[str, Path]
    merged: Mapping[str, Path]

    def settings(self, *names: str, **others: object) -> RuntimeSettings:
        given = tuple(f"{name}={self.adapters[name]}" for name in names or self.adapters)
        return replace(SETTINGS, adapters=given, **others)  # type: ignore[arg-type]


@pytest.fixture(
    scope="module", params=["Qwen3_5MoeForCausalLM", pytest.param("Qwen3_5ForCausalLM", marks=pytest.mark.soak)]
)
def exports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, traced_once: None) -> Exports:
    folder = tmp_path_factory.mktemp("adapters")
    base = write_base(folder / "base", architecture=request.param)
    model = load(base)
    adapters = {
        name: train(model, folder / name, seed=seed, **fields).folder
        for seed, (name, fields) in enumerate(KINDS.items())
    }
    options = ExportOptions(weights="fp32", activations="float32")
    export_checkpoint(base, folder / "slots", replace(options, runtime_adapters=("all",)))
    merged = {name: folder / f"merged-{name}" for name in adapters}
    for name, out in merged.items():
        export_checkpoint(base, out, replace(options, adapters=(adapters[name],)))
    export_checkpoint(base, folder / "merged-none", options)
    return Exports(base, folder / "slots", adapters, {**merged, "": folder / "merged-none"})


def ask(engine: Engine, adapter: str, prompt: list[int] = PROMPT, params: SamplingParams = PARAMS) -> Received:
    received = Received()
    engine.submit(prompt, params, received, adapter=adapter)
    return received


def logprobs(received: Received) -> np.ndarray:
    return np.array([[each.logprob for each in out.logprobs.top] for out in received.outputs if out.logprobs])


@pytest.fixture(scope="module")
def expected(exports: Exports) -> Callable[[str, list[int]], Received]:
    """The answer of the model that an adapter is merged into, one request at a time."""
    known: dict[tuple[str, tuple[int, ...]], Received] = {}

    def answer(name: str, prompt: list[int]) -> Received:
        key = name, tuple(prompt)
        if key not in known:
            with Engine.open(exports.merged[name], SETTINGS) as engine:
                known[key] = ask(engine, "", prompt)
                drive(engine)
        return known[key]

    return answer


def assert_same(found: Received, right: Received) -> None:
    assert found.tokens == right.tokens
    np.testing.assert_allclose(logprobs(found), logprobs(right), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kernels", ["native", "onnxruntime"])
def test_eight_requests_with_four_adapters_get_what_merged_models_give(
    exports: Exports, expected: Callable[[str, list[int]], Received], kernels: str
) -> None:
    names = ["all", "", "attention", "mlp", "last", "all", "", "mlp"]
    prompts = [PROMPT[: 20 + number] for number in range(8)]
    with Engine.open(exports.with_slots, exports.settings(kernels=kernels)) as engine:
        answers = [ask(engine, name, prompt) for name, prompt in zip(names, prompts, strict=True)]
        drive_until_loaded(engine)
        decoding = engine.metrics().decoding_rows
        assert sum(decoding.counts[3:]) >= 5, "more than four share a step"
    for name, prompt, answer in zip(names, prompts, answers, strict=True):
        assert_same(answer, expected(name, prompt))
    assert len({tuple(answer.tokens) for answer in answers}) > 4, "adapters change answers"


def drive_until_loaded(engine: Engine) -> None:
    """Step until all is idle: adapters come into their slots on another thread."""
    drive(engine, steps=200_000)


def test_more_adapters_than_slots_take_turns(exports: Exports, expected: Callable[[str, list[int]], Received]) -> None:
    with Engine.open(exports.with_slots, exports.settings(max_adapters=2, prefix_cache_bytes=0)) as engine:
        for _ in range(2):
            answers = {name: ask(engine, name) for name in ("all", "attention", "mlp", "", "last", "all")}
            drive_until_loaded(engine)
            for name, answer in answers.items():
                assert_same(answer, expected(name, PROMPT))
        slots = engine.adapter_slots()
        assert slots is not None
        assert slots.num_slots == 2
        assert slots.num_loads >= 6
        assert slots.num_evictions == slots.num_loads - 2


def test_a_prefix_is_found_by_requests_of_its_adapter_only(
    exports: Exports, expected: Callable[[str, list[int]], Received]
) -> None:
    with Engine.open(exports.with_slots, exports.settings()) as engine:
        for turn in range(2):
            for name in ("", "all", "mlp"):
                received = Received()
                engine.submit(PROMPT, PARAMS, received, snapshot_at=(30,), adapter=name)
                drive_until_loaded(engine)
                assert_same(received, expected(name, PROMPT))
                assert received.outputs[-1].num_cached_tokens == 30 * turn


def test_a_capsule_belongs_to_its_adapter(exports: Exports, expected: Callable[[str, list[int]], Received]) -> None:
    with Engine.open(exports.with_slots, exports.settings()) as engine:
        engine.submit(PROMPT, PARAMS, Received(), snapshot_at=(30,), adapter="all")
        drive_until_loaded(engine)
        owner = engine.adapter_owner("all")
        saved = engine.save_capsule(PROMPT[:30], owner=owner)
        assert saved is not None
        assert engine.save_capsule(PROMPT[:30]) is None
    with Engine.open(exports.with_slots, exports.settings()) as engine:
        for other in ("", engine.adapter_owner("mlp")):
            with pytest.raises(CapsuleError, match="another artifact"):
                engine.load_capsule(saved, owner=other)
        assert engine.load_capsule(saved, owner=owner) == 30
        answers = {name: ask(engine, name) for name in ("all", "mlp", "")}
        drive_until_loaded(engine)
        for name, answer in answers.items():
            assert_same(answer, expected(name, PROMPT))
            assert answer.outputs[-1].num_cached_tokens == (30 if name == "all" else 0)


def test_adapters_come_and_go_while_the_model_answers(
    exports: Exports, expected: Callable[[str, list[int]], Received]
) -> None:
    with Engine.open(exports.with_slots, exports.settings("mlp", max_adapter_rank=16)) as engine:
        engine.start()
        assert list(engine.adapters()) == ["mlp"]
        with pytest.raises(InvalidRequestError, match="no adapter 'all'") as refused:
            ask(engine, "all")
        assert (refused.value.param, refused.value.code) == ("model", "model_not_found")
        digest = engine.load_adapter("all", exports.adapters["all"])
        assert engine.adapters()["all"] == digest
        answer = ask(engine, "all")
        engine.unload_adapter("all")
        with pytest.raises(InvalidRequestError):
            ask(engine, "all")
        with pytest.raises(InvalidRequestError):
            engine.unload_adapter("all")
        wait_for(answer)
        assert_same(answer, expected("all", PROMPT))
        # Another one under a known name: nothing of the first one is used.
        assert engine.load_adapter("mlp", exports.adapters["last"]) != digest
        answer = ask(engine, "mlp")
        wait_for(answer)
        assert_same(answer, expected("last", PROMPT))


def wait_for(answer: Received) -> None:
    from tests.runtime.engine.engine_driver import wait_until

    wait_until(lambda: answer.reason is not None)


def test_an_adapter_that_changes_after_its_start_fails_its_requests_and_no_others(
    exports: Exports, expected: Callable[[str, list[int]], Received], tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(exports.adapters["all"], tmp_path / "copied"))
    settings = replace(exports.settings("mlp"), adapters=(f"mlp={exports.adapters['mlp']}", f"copied={copied}"))
    with Engine.open(exports.with_slots, settings) as engine:
        (copied / WEIGHTS).write_bytes((copied / WEIGHTS).read_bytes()[:-8])
        broken, whole = [ask(engine, "copied") for _ in range(3)], ask(engine, "mlp")
        drive_until_loaded(engine)
        for each in broken:
            assert each.reason is FinishReason.ERROR
            assert "has changed since it was loaded: load the adapter again" in (each.outputs[-1].error or "")
        assert_same(whole, expected("mlp", PROMPT))


def test_what_waits_for_an_adapter_can_be_aborted_and_ends_with_the_engine(exports: Exports) -> None:
    with Engine.open(exports.with_slots, exports.settings(max_adapters=1)) as engine:
        first, second, third = Received(), Received(), Received()
        engine.submit(PROMPT, PARAMS, first, adapter="all")
        engine.submit(PROMPT, PARAMS, second, adapter="mlp", request_id="second")
        engine.submit(PROMPT, PARAMS, third, adapter="last")
        engine.step()
        engine.abort("second")
        engine.step()
        assert second.reason is FinishReason.ABORT
        assert engine.check() == []
        engine.close()
        assert (first.reason, third.reason) == (FinishReason.ABORT, FinishReason.ABORT)


def cases(exports: Exports) -> Iterator[tuple[RuntimeSettings, str]]:
    adapters = exports.adapters
    yield replace(SETTINGS, adapters=(f"{adapters['all']}",)), "give NAME=FOLDER"
    yield replace(SETTINGS, adapters=(f"a={adapters['all']}", f"a={adapters['mlp']}")), "'a' twice"
    yield replace(SETTINGS, adapters=(f"a\n={adapters['all']}",)), "no name of an adapter"
    yield replace(SETTINGS, adapters=("a=/nowhere",)), "has no adapter_config.json"
    yield exports.settings(max_adapter_rank=8), "max_adapter_rank is 8 and all has"
    yield exports.settings(adapter_bytes=1000), "adapter_bytes is 1000: give more"


def test_adapters_that_cannot_be_used_are_one_line(exports: Exports, tmp_path: Path) -> None:
    for settings, message in cases(exports):
        with pytest.raises((SettingsError, AdapterError), match=message) as refused:
            Engine.open(exports.with_slots, settings)
        assert "\n" not in str(refused.value)
    with pytest.raises(SettingsError, match="takes no adapters while it runs: export with --runtime-adapters"):
        Engine.open(exports.merged[""], exports.settings())
    with Engine.open(exports.with_slots, SETTINGS) as engine:
        with pytest.raises(SettingsError, match="max_adapter_rank is not set"):
            engine.load_adapter("all", exports.adapters["all"])
        assert ask(engine, "").reason is None
        drive(engine)
    dora = tmp_path / "dora"
    shutil.copytree(exports.adapters["all"], dora)
    config = json.loads((dora / "adapter_config.json").read_text())
    (dora / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(AdapterError, match="is of DoRA"):
        Engine.open(exports.with_slots, replace(SETTINGS, adapters=(f"dora={dora}",)))


def test_an_artifact_without_a_target_names_it(exports: Exports, tmp_path: Path) -> None:
    options = ExportOptions(weights="fp32", runtime_adapters=("q_proj", "o_proj"))
    manifest = export_checkpoint(exports.base, tmp_path / "two", options)
    assert [target.module.rpartition(".")[2] for target in manifest.adapter_targets] == ["q_proj", "o_proj"]
    with pytest.raises(AdapterError, match="the artifact takes adapters of o_proj, q_proj only: export it with"):
        Engine.open(tmp_path / "two", exports.settings("attention"))
    with Engine.open(tmp_path / "two", exports.settings("last")) as engine:
        answer = ask(engine, "last")
        drive_until_loaded(engine)
        assert answer.reason is FinishReason.LENGTH


def test_projections_that_do_not_exist_and_targets_without_slots_are_refused(exports: Exports, tmp_path: Path) -> None:
    for names, target, message in (
        (("q_proj", "head"), "cpu", "'head' is no projection"),
        (("all",), "cuda", "take no adapters while they run: use --target cpu or portable"),
    ):
        with pytest.raises(ExportError, match=message):
            export_checkpoint(exports.base, tmp_path / "out", ExportOptions(runtime_adapters=names, target=target))
