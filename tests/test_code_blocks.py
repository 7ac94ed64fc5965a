"""Every code block of the pages works as typed in a clone, with the miniature for hub ids.

Commands that take minutes (benchmarks, trainings) are only parsed, as their program parses them. Installations and
programs of others are not run here: the README's own (`make demo`) is run by hand, extras by test_extras.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from _pytest.mark import ParameterSet
from safetensors.numpy import save_file

from infra.miniature.checkpoint import TRAINED
from qwonnx.export import ExportOptions, export_checkpoint
from tests.checkpoints.gguf_files import write_gguf

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        ROOT / "tests" / "miniature" / "CARD.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)
# Pages whose commands take half a minute or more: `make soak` runs them.
_LONG = frozenset(
    {
        *("cuda.md", "eval.md", "long-context.md", "optimum.md", "performance.md", "plan.md", "prefixes.md"),
        *("quantization.md", "CARD.md", "adapters.md", "fine-tuning.md", "tutorial.md", "verify.md"),
    }
)
_HUB_IDS = ("Qwen/Qwen3.5-35B-A3B", "Qwen/Qwen3.5-9B", "Qwen/Qwen3.5-0.8B")
# What a page's reader has, and the miniature or the time of a test has not.
_SUBSTITUTES = {"s3://bucket/": "Qwen/", "/mnt/shared": ".", "262144": "16384", "--limit 100": "--limit 1"}
# An indented block is code if it begins with one of these.
_PROGRAMS = (
    *("qwonnx", "python", "python3", "pip", "make", "curl"),
    *("optimum-cli", "cmake", "ninja", "cd", "llama-quantize"),
)
_OTHERS = ("pip download", "cd ", "cmake ", "ninja ", "llama-quantize ", "tar ", "python ../gpu-check/")
_INSTALLS = ("python3 infra/install.py", ". .venv/bin/activate", "pip wheel", "python3 -m venv")
# Runs a program of ours until it has parsed its options.
_PARSE = """
import argparse, runpy, sys
parse = argparse.ArgumentParser.parse_args
def parsed(self, *arguments, **options):
    parse(self, *arguments, **options)
    raise SystemExit(0)
argparse.ArgumentParser.parse_args = parsed
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
raise SystemExit("the program has not parsed its options")
"""


@dataclass(frozen=True, slots=True)
class Block:
    """A code block.

    language: of a fenced one; "sh" for an indented one with commands.
    lines: of the block; a command's continuation lines are part of its line.
    """

    language: str
    lines: tuple[str, ...]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks, and the indented ones that begin with a program or with a variable before it."""
    text = page.read_text(encoding="utf-8")
    for language, content in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(language, tuple(content.splitlines()))
    unfenced = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for content in re.findall(r"(?:^    .*\n?)+", unfenced, re.MULTILINE):
        joined = re.sub(r"\\\n\s*", "", content)
        lines = tuple(line.strip() for line in joined.splitlines() if line.strip())
        first = next(word for word in shlex.split(lines[0], comments=True) if "=" not in word)
        if first in (*_PROGRAMS, "."):
            yield Block("sh", lines)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifact") / "qwen-int4"
    export_checkpoint(TRAINED, out, ExportOptions(weights="int4"))
    return out


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(TRAINED, tmp_path_factory.mktemp("gguf") / "model-Q8_0.gguf", "Q8_0")


@pytest.fixture
def clone(tmp_path: Path, artifact: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages name; nothing is pulled yet."""
    monkeypatch.setenv("QWONNX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "clone"
    (folder / "Qwen").mkdir(parents=True)
    for name in ("docs", "tests", "infra", "export", "runtime", "handlers"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("README.md", "LICENSE", "pyproject.toml", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".bench").mkdir()
    for name in (*_HUB_IDS, "checkpoint", ".bench/geometry"):
        (folder / name).symlink_to(TRAINED)
    text = json.loads((TRAINED / "config.json").read_text())["text_config"]
    queries = "layers.3.self_attn.q_proj", text["hidden_size"], 2 * text["num_attention_heads"] * text["head_dim"]
    for name in ("adapter", "support", "legal", "tuned-adapter"):
        _write_adapter(folder / name, folder / "checkpoint", *queries)
    (folder / "adapters").mkdir()
    _write_adapter(folder / "adapters" / "support", folder / "checkpoint", *queries)
    (folder / gguf.name).symlink_to(gguf)
    (folder / "keys.txt").write_text("one: first\ntwo: second\n")
    (folder / "keys.txt").chmod(0o600)
    (folder / "conversations.txt").write_text("What is Germany called in Swahili? Ujerumani. " * 40)
    return folder


def _write_adapter(folder: Path, base: Path, module: str, num_inputs: int, num_outputs: int) -> None:
    """A LoRA adapter of one matrix."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 1, "target_modules": [module]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    factors = {"A": (1, num_inputs), "B": (num_outputs, 1)}
    save_file(
        {
            f"base_model.model.model.{module}.lora_{name}.weight": np.full(shape, 1e-3, np.float32)
            for name, shape in factors.items()
        },
        folder / "adapter_model.safetensors",
    )


def _param(page: Path) -> ParameterSet:
    return pytest.param(page, id=page.name, marks=pytest.mark.soak if page.name in _LONG else ())


@pytest.mark.parametrize("page", [_param(page) for page in PAGES])
def test_the_code_of_a_page_works(page: Path, clone: Path, artifact: Path) -> None:
    found = list(blocks(page))
    commands = " ".join(line for block in found for line in block.lines)
    if not re.search(r"export .*qwen-int4", commands):
        (clone / "qwen-int4").symlink_to(artifact)  # else the page makes it
    for block in found:
        if block.language == "toml" and page.name != "recipes.md":
            (clone / "qwonnx.toml").write_text("\n".join(block.lines) + "\n")  # the page's commands read it
    for block in sorted(found, key=lambda block: block.language != "sh"):
        match block.language:
            case "sh":
                for line in block.lines:
                    _run(line, clone, _calls_of(line, found))
            case "python":
                answer = _call([sys.executable, "-c", "\n".join(block.lines)], clone)
                assert answer.stdout or "main_export" in commands, "it prints nothing"
            case "json":
                json.loads("{" + "\n".join(block.lines).strip().removeprefix("{").removesuffix("}\n") + "}")
            case "toml":
                tomllib.loads("\n".join(block.lines))
                if page.name != "recipes.md":
                    continue
                example = (ROOT / "docs" / "examples" / "recipe.toml").read_text()
                assert example == "\n".join(block.lines) + "\n"
            case language:
                raise AssertionError(f"a block in {language!r} is not tested: add a case")


def _calls_of(served: str, found: list[Block]) -> list[list[str]]:
    """The curl commands of a page between the line that starts a server and the next such line."""
    lines = [line for block in found if block.language == "sh" for line in block.lines]
    after = lines[lines.index(served) + 1 :]
    until = next((index for index, line in enumerate(after) if "qwonnx serve" in line), len(after))
    return [shlex.split(line, comments=True) for line in after[:until] if line.startswith("curl ")]


def _run(line: str, clone: Path, calls: list[list[str]]) -> None:
    for given, substitute in _SUBSTITUTES.items():
        line = line.replace(given, substitute)
    words = shlex.split(line, comments=True)
    command = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    if line.startswith(_OTHERS) or line.startswith(_INSTALLS):
        _check_extras(line)
    elif command[0] == "make":
        assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif command[:2] == ["qwonnx", "serve"]:
        _serve(words, clone, calls)
    elif command[0] == "curl":
        pass  # its server runs it
    elif command[:3] == ["python", "-m", "pytest"]:
        _call([sys.executable, "-m", "pytest", "--collect-only", "-q", *command[3:]], clone)
    elif command[:2] == ["python", "-m"]:
        _call([sys.executable, "-c", _PARSE, *command[2:]], clone)
    else:
        _call(["sh", "-ec", line], clone)


def _check_extras(line: str) -> None:
    """The extras that an installation names exist."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"--extras ([\w,]+)|\[([\w,]+)\]\"", line)
    assert {extra for pair in named for names in pair for extra in names.split(",") if extra} <= set(known), line


def _serve(words: list[str], clone: Path, calls: list[list[str]]) -> None:
    """Start a server as typed, ask what it says to try and what its page asks, and end it as a user does."""
    process = subprocess.Popen(
        ["env", *words, "--port", "0"],
        cwd=clone,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = ""
        for output in process.stdout:
            said += output
            if output.strip().startswith("-d "):
                break
        assert "-d " in said, process.stderr and process.stderr.read()
        address = _ask(said, words)
        for call in calls:
            asked = [word.replace("http://127.0.0.1:8000", address) for word in call]
            _call([asked[0], "--fail-with-body", "--silent", "--show-error", *asked[1:]], clone)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Goodbye" in rest
    finally:
        process.kill()
        process.communicate()


def _ask(said: str, words: list[str]) -> str:
    """Ask what the server's curl line asks, with the key that its environment or its file has; return its address."""
    curl = shlex.split(said[said.index("curl") :])
    body = json.loads(curl[curl.index("-d") + 1])
    keys = [word.partition("=")[2] for word in words if word.startswith("QWONNX_API_KEY=")]
    keys += ["first"] if "--api-keys" in words else []
    headers = {"authorization": f"Bearer {keys[0]}"} if keys else {}
    answer = httpx.post(curl[1], json=body, headers=headers, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "Ujerumani"
    return curl[1].partition("/v1/")[0]


def _call(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, f"{command[-1]}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
    return run


def _environment() -> dict[str, str]:
    """With the programs of this environment first, as after its activation."""
    programs = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "QWONNX_SPIN": "0"}
