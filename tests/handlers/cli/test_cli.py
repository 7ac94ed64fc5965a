"""The `qwonnx` command as users run it: in a separate process, with its streams and its exit status."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from importlib.metadata import version
from pathlib import Path
from typing import IO

import httpx
import pytest

from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.handlers.cli.commands import QWONNX, error_line, qwonnx, running
from tests.handlers.serving import MODEL, chat
from tests.runtime import counting_model
from tests.runtime.counting_model import make


def test_prompts_are_continued_on_stdout_and_nothing_else_is_printed(counting_folder: Path) -> None:
    result = qwonnx("generate", counting_folder, "--prompt", "Hello", "--max-tokens", 8)
    assert (result.returncode, result.stderr) == (0, "")
    model = counting_model.CountingModel(counting_folder, _tokenizer(counting_folder), 1, None)
    assert result.stdout == model.tokenizer.decode(model.answer(model.tokenizer.encode("Hello"), 8)) + "\n"
    piped = qwonnx("generate", counting_folder, "--prompt", "-", "--max-tokens", 8, "--stats", stdin="Hello")
    assert piped.stdout == result.stdout
    assert re.fullmatch(r"\d+ prompt tokens, first token after .* 8 tokens, finish reason length\n", piped.stderr)


def test_chats_show_thoughts_on_stderr_and_the_answer_on_stdout(tmp_path: Path) -> None:
    folder = counting_model.make(tmp_path / "artifact", script="<think>\nHe asks.\n</think>\n\nYes.").folder
    result = qwonnx("generate", folder, "--chat", "Is it?", "--system", "Be brief.", "--no-thinking")
    assert (result.returncode, result.stdout) == (0, "Yes.\n")
    assert result.stderr.strip() == "He asks."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --prompt or --chat"),
        (["--prompt", "x", "--chat", "y"], "either --prompt or --chat"),
        (["--prompt", "x", "--system", "y"], "need --chat"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "x", "--temperature", "-1"], "temperature is -1"),
        (["--prompt", "x", "--threads", "0"], "num_threads is 0"),
        (["--prompt", "x" + counting_model.FAILING_TEXT.replace("\x00", "\x02")], "the model failed"),
    ],
)
def test_what_generate_cannot_do_is_one_line(
    counting_folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    # A command line holds no NUL, so this model fails at another character.
    folder = counting_model.make(tmp_path / "artifact", failing_text="\x02").folder
    assert message in error_line(qwonnx("generate", folder, *arguments))


def test_a_newer_schema_is_refused_by_every_command(counting_folder: Path, tmp_path: Path) -> None:
    newer = Path(shutil.copytree(counting_folder, tmp_path / "newer"))
    manifest = newer / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema_version": 99}))
    for command in (["inspect"], ["serve"], ["generate", "--prompt", "x"]):
        assert "schema 99" in error_line(qwonnx(command[0], newer, *command[1:]))


def test_inspect_prints_the_manifest_as_tables_or_json(counting_folder: Path) -> None:
    tables = qwonnx("inspect", counting_folder, "--verify")
    assert tables.returncode == 0
    for word in ("counting-model", "Qwen3_5MoeForCausalLM", "logit_positions", "recurrent_state", "tokenizer.json"):
        assert word in tables.stdout
    document = json.loads(qwonnx("inspect", counting_folder, "--json").stdout)
    assert document == json.loads((counting_folder / "manifest.json").read_text())


def test_inspect_shows_what_runs_each_node(counting_folder: Path) -> None:
    listed = json.loads(qwonnx("inspect", counting_folder, "--nodes", "--json").stdout)
    nodes = listed["decoder"]
    assert nodes
    assert {node["provider"] for node in nodes} == {"CPUExecutionProvider"}
    table = qwonnx("inspect", counting_folder, "--nodes").stdout
    assert all(node["op_type"] in table for node in nodes)
    assert "device is cuda and" in error_line(qwonnx("inspect", counting_folder, "--nodes", "--device", "cuda"))


def test_version_and_help_are_quick_and_teach() -> None:
    assert qwonnx("--version").stdout == f"qwonnx {version('qwonnx')}\n"
    for command in ("check", "plan", "export", "inspect", "verify", "eval", "generate", "serve"):
        shown = qwonnx(command, "--help")
        assert shown.returncode == 0
        assert f"qwonnx {command} ./" in shown.stdout or f"qwonnx {command} Qwen" in shown.stdout


@pytest.mark.parametrize(
    ("missing", "arguments", "hint"),
    [
        ("torch", ["export", "checkpoint", "out"], "--extras export"),
        ("torch", ["verify", "./artifact", "--against", "checkpoint"], "--extras export"),
        ("onnxruntime", ["generate", "./artifact", "--prompt", "x"], "--extras cpu"),
    ],
)
def test_a_missing_extra_is_one_line_with_its_name(missing: str, arguments: list[str], hint: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None\n{QWONNX[2]}"
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
    assert hint in error_line(result)


def test_a_bug_keeps_its_traceback() -> None:
    program = textwrap.dedent("""
        import qwonnx.handlers.cli.inspect as inspect
        def broken(*arguments, **keywords):
            raise ZeroDivisionError("inside")
        inspect.open_artifact = broken
        from qwonnx.handlers.cli.main import main
        main()
    """)
    result = subprocess.run(
        [sys.executable, "-c", program, "inspect", "./x"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError: inside" in result.stderr


def test_serve_prints_a_curl_line_that_works_and_ends_cleanly_on_either_signal(counting_folder: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        with running("serve", counting_folder, "--port", 0, "--max-model-len", 512, "--ui") as process:
            greeting = [_line(process.stdout) for _ in range(4)]
            assert greeting[1].startswith(f"Serving {MODEL} at http://127.0.0.1:")
            page = _line(process.stdout).rstrip()
            assert page == f"A page for conversations is at {greeting[1].split(' at ')[1].split('/v1')[0]}/"
            answer = subprocess.run("".join(greeting[2:]), shell=True, capture_output=True, text=True, timeout=30)
            assert json.loads(answer.stdout)["usage"]["completion_tokens"] == 64
            process.send_signal(number)
            _, log = process.communicate(timeout=30)
        assert process.returncode == 0
        ready, request = log.splitlines()
        assert "ready, after seconds of: " in ready
        assert "POST /v1/chat/completions 200" in request


def test_a_signal_ends_a_running_answer_after_a_bounded_time(counting_folder: Path) -> None:
    command = ("serve", counting_folder, "--port", 0, "--max-model-len", 4000, "--max-num-batched-tokens", 1)
    with running(*command, QWONNX_SHUTDOWN_SECONDS="0") as process:
        url = re.findall(r"http://[^/]+", "".join(_line(process.stdout) for _ in range(4)))[0]
        request = {"model": MODEL, "messages": chat("x" * 3000), "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=request, trust_env=False, timeout=30) as answer:
            process.send_signal(signal.SIGTERM)
            events = [line for line in answer.iter_lines() if line]
        started = time.monotonic()
        process.wait(timeout=30)
    assert time.monotonic() - started < 5
    assert process.returncode == 0
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "server_closing"


def test_serve_refuses_what_it_cannot_do_before_it_listens(counting_folder: Path, tmp_path: Path) -> None:
    assert "manifest.json" in error_line(qwonnx("serve", tmp_path))
    assert "cannot listen" in error_line(qwonnx("serve", counting_folder, "--host", "203.0.113.1"))
    assert "QWONNX_API_KEY" in error_line(qwonnx("serve", counting_folder, QWONNX_API_KEY=""))
    assert "max_model_len" in error_line(qwonnx("serve", counting_folder, "--port", 0, "--max-model-len", 10**6))


def test_ctrl_c_ends_generate_with_130_and_no_traceback(tmp_path: Path) -> None:
    slow = make(tmp_path / "slow", num_pairs=48).folder  # too long for any machine to finish before the stop
    with running("generate", slow, "--prompt", "Hello", "--max-tokens", 4000) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")


def _line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline()


def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(folder / "tokenizer.json")
