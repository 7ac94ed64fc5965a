"""From a checkpoint to an answer, with the commands of the README: export, inspect, verify, generate, serve."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.native.library import VARIABLE, NativeLibrary
from tests.handlers.cli.commands import error_line, qwonnx, running
from tests.handlers.serving import RUNTIME, chat, serving


@pytest.fixture(scope="module")
def artifact(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, exported by the command line with its defaults."""
    out = tmp_path_factory.mktemp("exported") / "artifact"
    result = qwonnx("export", tiny_checkpoint, out)
    assert result.returncode == 0, result.stderr
    assert re.search(r"experts\b.*int4", result.stdout), result.stdout
    assert "bits/weight" in result.stdout
    assert "skipped: vision tower, 21 tensors, " in result.stdout
    return out


def test_an_exported_artifact_is_inspected_and_verified_and_generates(artifact: Path, tiny_checkpoint: Path) -> None:
    manifest = json.loads(qwonnx("inspect", artifact, "--verify", "--json").stdout)
    assert manifest["quantization"]["weights"] == "int4"
    report = qwonnx("verify", artifact, "--against", tiny_checkpoint, "--json", "--max-kl", 0)
    assert (report.returncode, 0 < json.loads(report.stdout)["mean_kl"] < 1) == (1, True), report.stderr
    assert "exceeds 0" in report.stderr
    sampled = qwonnx("generate", artifact, "--chat", "Hi", "--max-tokens", 12, "--seed", 1, "--stats")
    assert sampled.returncode == 0, sampled.stderr
    assert re.search(r"\d+ tokens, finish reason (length|stop)\n$", sampled.stderr)


def test_kernels_are_chosen_by_an_option_and_a_missing_library_is_told(
    artifact: Path, tmp_path: Path, library: NativeLibrary
) -> None:
    assert re.search(r"native kernels .*QuantizedLinear, QuantizedMixture", qwonnx("inspect", artifact).stdout)
    ask = ("generate", artifact, "--prompt", "Hello", "--max-tokens", 3, "--temperature", 0)
    for kernels in (Kernels.NATIVE, Kernels.ONNXRUNTIME):
        answered = qwonnx(*ask, "--kernels", kernels)
        assert (answered.returncode, answered.stderr) == (0, "")
    missing = {VARIABLE: str(tmp_path / "none.so")}
    fallen_back = qwonnx(*ask, **missing)
    assert (fallen_back.returncode, fallen_back.stdout) == (0, answered.stdout)
    (line,) = fallen_back.stderr.splitlines()
    assert line == (
        f"ONNX Runtime's kernels run instead of native ones: there are no native kernels at {missing[VARIABLE]}: "
        f"{VARIABLE} names it"
    )
    assert qwonnx(*ask, **missing, QWONNX_KERNELS="onnxruntime").stderr == ""
    for command in (ask, ("serve", artifact, "--port", 0)):
        assert "kernels is native, and there are no" in error_line(qwonnx(*command, "--kernels", "native", **missing))
    assert "kernels is 'fast': give auto, native, onnxruntime" in error_line(qwonnx(*ask, QWONNX_KERNELS="fast"))
    with running("serve", artifact, "--port", 0) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "ready" in line)
    said = re.search(rf"ready, after seconds of: (.*); kernels: native \({library.instructions}\)$", line.strip())
    assert said
    phases = set(re.findall(r"([a-z -]+?) \d+\.\d{3}(?:, |$)", said[1]))
    assert phases >= {"options", "imports of the engine", "session", "files", "weights", "states", "warm-up"}


def test_weights_that_were_damaged_are_found_by_their_size_their_hash_and_their_answers(
    artifact: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(artifact, tmp_path / "damaged"))
    weights = next(iter(sorted(damaged.glob("weights-*.bin"))))
    size = weights.stat().st_size
    weights.write_bytes(b"\xff" * size)  # scales that are not numbers
    assert f"{weights.name} in" in error_line(qwonnx("inspect", damaged, "--verify"))
    assert "the model failed" in error_line(qwonnx("generate", damaged, "--prompt", "Hi", "--max-tokens", 2))
    assert "not finite" in error_line(qwonnx("serve", damaged, "--port", 0))
    verified = qwonnx("verify", damaged, "--against", tiny_checkpoint)
    assert (verified.returncode, f"{weights.name} differs from what the export wrote" in verified.stderr) == (1, True)
    weights.write_bytes(b"\xff" * (size // 2))
    for command in (["inspect"], ["generate", "--prompt", "Hi"], ["serve"]):
        assert f"{weights.name} in" in error_line(qwonnx(command[0], damaged, *command[1:]))


def test_an_artifact_with_an_int8_cache_says_so_and_generates(long_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    assert qwonnx("export", long_checkpoint, out, "--kv", "int8").returncode == 0
    shown = qwonnx("inspect", out).stdout
    assert re.search(r"keys and values +\W int8, 64 B per token", shown), shown
    longest = ("--max-tokens", 4, "--max-model-len", 1_010_000)
    assert qwonnx("generate", out, "--prompt", "Hello", *longest).returncode == 0


def test_a_served_artifact_answers_the_openai_client(artifact: Path) -> None:
    with serving(artifact, runtime=RUNTIME) as served, served.client() as client:
        (model,) = client.models.list()
        messages = [*chat("Why is the sky blue?")]
        whole = client.chat.completions.create(model=model.id, messages=messages, max_tokens=24, temperature=0)
        stream = client.chat.completions.create(
            model=model.id, messages=messages, max_tokens=24, temperature=0, stream=True
        )
        chunks = list(stream)
    # The template opens <think>, so the text of an untrained model is reasoning until it happens to close it.
    message = whole.choices[0].message.model_dump()
    deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks]
    for part in ("content", "reasoning_content"):
        assert "".join(delta.get(part) or "" for delta in deltas) == (message.get(part) or "")
    assert whole.usage is not None
    assert 0 < whole.usage.completion_tokens <= 24


def test_exports_that_cannot_be_are_one_line_and_leave_nothing(
    artifact: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert "--force" in error_line(qwonnx("export", tiny_checkpoint, artifact))
    broken = Path(shutil.copytree(tiny_checkpoint, tmp_path / "broken"))
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    assert "LlamaForCausalLM" in error_line(qwonnx("export", broken, tmp_path / "out"))
    (broken / "config.json").write_text(json.dumps(config))
    shard = next(iter(sorted(broken.glob("*.safetensors"))))
    with shard.open("r+b") as stream:
        stream.truncate(shard.stat().st_size - 100)
    assert shard.name in error_line(qwonnx("export", broken, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
