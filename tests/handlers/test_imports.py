"""The imports of a server, which cost memory and time at cold starts."""

from __future__ import annotations

import subprocess
import sys

import pytest

FORBIDDEN = ("typer", "rich", "torch", "onnx", "onnx_ir", "onnxscript", "transformers", "huggingface_hub", "openai")


@pytest.mark.parametrize(
    "module",
    [
        "qwonnx.handlers.app",
        "qwonnx.handlers.functions.aws_lambda",
        "qwonnx.handlers.functions.platform",
        "qwonnx.handlers.functions.runpod",
        "qwonnx.handlers.server",
        "qwonnx.runtime.engine.engine",
    ],
)
def test_a_server_imports_no_command_line_and_no_exporter(module: str) -> None:
    program = f"import sys, {module}; print(*[name for name in {FORBIDDEN!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


def test_the_command_line_starts_without_the_exporter_and_the_engine() -> None:
    program = (
        "import sys, qwonnx.handlers.cli.main; "
        "print(*[name for name in ('torch', 'onnx', 'onnxruntime', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


def test_a_command_is_imported_without_the_others() -> None:
    program = (
        "import sys; from qwonnx.handlers.cli.command_line import command_line; command_line(['generate', 'artifact']);"
        "print(*[name for name in sys.modules if name.startswith(('qwonnx.export', 'qwonnx.handlers.cli.'))])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(result.stdout.split())
    assert "qwonnx.handlers.cli.generate" in loaded
    assert not {name for name in loaded if name.startswith("qwonnx.export")}
    assert "qwonnx.handlers.cli.bake" not in loaded


def test_serve_listens_before_it_imports_the_engine_and_the_server() -> None:
    """What it needs until then takes a tenth of a second: a client that comes with the process need not try again."""
    program = (
        "import sys\n"
        "from qwonnx.handlers.http import listener\n"
        "def bind(*address):\n"
        "    print(*sys.modules)\n"
        "    raise SystemExit\n"
        "listener.bind = bind\n"
        "sys.argv[1:] = ['serve', './artifact']\n"
        "from qwonnx.handlers.cli.main import main\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(result.stdout.split())
    assert "qwonnx.handlers.cli.serve" in loaded
    late = {*FORBIDDEN, "numpy", "onnxruntime", "tokenizers", "jinja2", "msgspec", "starlette", "uvicorn", "asyncio"}
    assert not loaded & late
