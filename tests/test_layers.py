"""Imports point one way: handlers -> runtime -> the artifact contract <- export."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("export", "runtime", "handlers")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# What only an export needs; a server must start, and fit, without it.
HEAVY = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "optimum", "huggingface_hub"}
CONTRACT = "qwonnx.runtime.artifact.manifest"

# What optimum-cli loads, and nothing of ours does: these alone may import optimum, and only what is light in it.
OPTIMUM_COMMAND = "qwonnx.handlers.cli.optimum_export"
OPTIMUM_REGISTER = "qwonnx.handlers.cli.optimum_register"  # installed as optimum.commands.register


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("qwonnx", *(part for part in parts if part != "__init__")))


def _imports(path: Path, *, at_import_time: bool = False) -> Iterator[str]:
    """Modules that a file imports; with at_import_time only those that merely importing it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield str(node.module)
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        )
        if not (lazy and at_import_time):
            pending.extend(ast.iter_child_nodes(node))


def _is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _allowed(importer: str, imported: str) -> bool:
    """Whether one of our modules may import another."""
    if _is_under(importer, "qwonnx.export"):
        return _is_under(imported, "qwonnx.export")
    if _is_under(importer, "qwonnx.runtime"):
        return _is_under(imported, "qwonnx.runtime") or imported == CONTRACT
    if _is_under(importer, "qwonnx.handlers.cli"):
        return True
    return _is_under(imported, "qwonnx.handlers") or _is_under(imported, "qwonnx.runtime") or imported == CONTRACT


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    ours = [module for module in _imports(path) if _is_under(module, "qwonnx")]
    assert [module for module in ours if not _allowed(_name(path), module)] == []


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_server_needs_none_of_the_exporters_packages(path: Path) -> None:
    name = _name(path)
    if _is_under(name, "qwonnx.export"):
        return
    in_functions = _is_under(name, "qwonnx.handlers.cli")  # `qwonnx export` may, once it is called
    imported = {module.partition(".")[0] for module in _imports(path, at_import_time=in_functions)}
    plugin = _is_under(name, OPTIMUM_COMMAND) or _is_under(name, OPTIMUM_REGISTER)
    assert imported & HEAVY == ({"optimum"} if plugin else set())


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_only_optimum_loads_optimums_command(path: Path) -> None:
    command = [module for module in _imports(path) if _is_under(module, OPTIMUM_COMMAND)]
    assert not command or _is_under(_name(path), OPTIMUM_REGISTER)
    # Under this name it exists in the repository alone.
    assert not any(_is_under(module, OPTIMUM_REGISTER) for module in _imports(path))


def test_the_artifact_contract_is_standard_library_alone() -> None:
    for name in ("artifact", "strict_json"):
        imported = set(_imports(ROOT / "export" / f"{name}.py")) - {"qwonnx.runtime.artifact.strict_json"}
        assert {module.partition(".")[0] for module in imported} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        ("qwonnx.runtime.artifact.manifest", HEAVY | {"numpy", "onnxruntime"}),
        ("qwonnx.runtime", HEAVY | {"starlette", "uvicorn", "msgspec", "typer", "rich"}),
        ("qwonnx.handlers.app, qwonnx.handlers.functions.aws_lambda", HEAVY | {"typer", "rich"}),
        ("qwonnx.handlers.cli.main", HEAVY),
        (OPTIMUM_COMMAND, HEAVY - {"optimum"}),
        ("qwonnx.export.planning.report, qwonnx.export.planning.source", HEAVY | {"numpy", "onnxruntime"}),
    ],
)
def test_importing_loads_nothing_more(modules: str, forbidden: set[str]) -> None:
    program = f"import sys, {modules}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert forbidden & set(loaded) == set()
