"""Imports point one way: handlers -> export -> runtime, and within each package down the order of its entries.

`python -m pytest tests/test_layers.py -s` prints the table.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parent.parent

# The entries (folders, and files without a folder) of each package, in reading order: an entry imports only itself and
# entries before it. docs/architecture.md has the same table.
ORDER: Mapping[str, tuple[str, ...]] = {
    "runtime": (
        "telemetry",
        "errors",
        "install",
        "quantities",
        "machine",
        "native",
        "cuda",
        "artifact",
        "settings",
        "text",
        "cache",
        "adapters",
        "sampling",
        "scheduling",
        "model",
        "engine",
        "baking",
    ),
    "export": (
        "errors",
        "checkpoint",
        "adapters",
        "operators",
        "modeling",
        "quantization",
        "weight_files",
        "lowering",
        "targets",
        "description",
        "pipeline",
        "stages",
        "planning",
        "evaluation",
        "verification",
        "optimum_entry",
    ),
    "handlers": (
        "errors",
        "effort",
        "settings",
        "configuration",
        "models",
        "engine_start",
        "model_host",
        "http",
        "chat",
        "openai",
        "responses",
        "anthropic",
        "ollama",
        "app",
        "server",
        "functions",
        "batch",
        "routing",
        "ray",
        "bench",
        "library",
        "cli",
    ),
}
# Entries whose imports may leave their package, and their targets. The command line knows the exporter, and so does the
# code that pulls models.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "qwonnx.runtime": ("qwonnx.runtime",),
    "qwonnx.export": ("qwonnx.export", "qwonnx.runtime"),
    "qwonnx.handlers": ("qwonnx.handlers", "qwonnx.runtime"),
    "qwonnx.handlers.models": ("qwonnx.handlers", "qwonnx.export", "qwonnx.runtime"),
    "qwonnx.handlers.cli": ("qwonnx.handlers", "qwonnx.export", "qwonnx.runtime"),
}
MAX_ENTRIES = 22  # of a package's top folder; handlers has a folder for each door
MODULES = sorted(path for folder in ORDER for path in (ROOT / folder).rglob("*.py"))

# Packages that only an export needs; a server must start, and fit, without them.
HEAVY = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "optimum", "huggingface_hub"}
CONTRACT = "qwonnx.runtime.artifact"

# Modules that optimum-cli loads, and that our other code does not import: only these may import optimum, and only its
# light parts.
OPTIMUM_COMMAND = "qwonnx.handlers.cli.optimum_export"
OPTIMUM_REGISTER = "qwonnx.handlers.cli.optimum_register"  # installed as optimum.commands.register


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("qwonnx", *(part for part in parts if part != "__init__")))


NAMES = {_name(path) for path in MODULES}


def _imports(path: Path, *, at_import_time: bool = False) -> Iterator[str]:
    """Modules that a file imports; with at_import_time, only those that it imports when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in NAMES else str(node.module)
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        )
        if not (lazy and at_import_time):
            pending.extend(ast.iter_child_nodes(node))


def _is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


OUR_IMPORTS = {
    _name(path): sorted({module for module in _imports(path) if _is_under(module, "qwonnx")}) for path in MODULES
}


def _entry(module: str) -> tuple[str, str]:
    """The package of a module, and its entry in there; the package's own `__init__` has none ("")."""
    _, package, *rest = module.split(".")
    return package, rest[0] if rest else ""


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_module_imports_only_packages_below_its_own(path: Path) -> None:
    importer = _name(path)
    allowed = max((package for package in PACKAGES if _is_under(importer, package)), key=len)
    strangers = [
        module
        for module in OUR_IMPORTS[importer]
        if not any(_is_under(module, package) for package in PACKAGES[allowed])
    ]
    assert strangers == []


@pytest.mark.parametrize("package", ORDER)
def test_the_order_names_every_entry_once(package: str) -> None:
    there = {_entry(name)[1] for name in NAMES if _is_under(name, f"qwonnx.{package}")} - {""}
    assert sorted(ORDER[package]) == sorted(there)


@pytest.mark.parametrize("package", ORDER)
def test_a_folder_has_few_entries(package: str) -> None:
    unread = {"__pycache__", "__init__.py", "py.typed"}
    entries = [path.name for path in (ROOT / package).iterdir() if path.name not in unread]
    assert len(entries) <= MAX_ENTRIES, sorted(entries)


def test_entries_import_only_entries_before_them() -> None:
    against = []
    for importer, imported in OUR_IMPORTS.items():
        package, entry = _entry(importer)
        for module in imported:
            other_package, other = _entry(module)
            if other_package != package or other == entry or not entry:
                continue
            if not other or ORDER[package].index(other) > ORDER[package].index(entry):
                against.append(f"{importer} -> {module}")
    assert against == []


def test_there_are_no_circles_between_files() -> None:
    state: dict[str, bool] = {}  # False while a module's imports are followed, True afterwards

    def follow(module: str, way: tuple[str, ...]) -> None:
        assert state.get(module) is not False, f"a circle: {' -> '.join((*way, module))}"
        if module not in state:
            state[module] = False
            for imported in OUR_IMPORTS[module]:
                # A package's __init__ is a front door: importing one of its modules passes it, without using it.
                if imported in NAMES and imported != module:
                    follow(imported, (*way, module))
            state[module] = True

    for module in sorted(NAMES):
        follow(module, ())


def test_the_table_of_entries_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Print which entry imports which entries, for a reader with -s."""
    lines = []
    for package, entries in ORDER.items():
        lines.append(f"\n{package:<16}imports")
        for entry in entries:
            used = {
                other if other_package == package else f"{other_package}/{other}"
                for importer, imported in OUR_IMPORTS.items()
                if _entry(importer) == (package, entry)
                for other_package, other in map(_entry, imported)
                if (other_package, other) != (package, entry) and other
            }
            ordered = sorted(used, key=lambda name: (("/" in name), name))
            lines.append(f"  {entry:<14}{', '.join(ordered) or '-'}")
    with capsys.disabled():
        if "-s" in sys.argv:
            print("\n".join(lines))
    assert len(lines) == len(ORDER) + sum(map(len, ORDER.values()))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_server_needs_none_of_the_exporters_packages(path: Path) -> None:
    name = _name(path)
    if _is_under(name, "qwonnx.export"):
        return
    in_functions = _is_under(name, "qwonnx.handlers.cli")  # `qwonnx export` may import them when it is called
    imported = {module.partition(".")[0] for module in _imports(path, at_import_time=in_functions)}
    plugin = _is_under(name, OPTIMUM_COMMAND) or _is_under(name, OPTIMUM_REGISTER)
    assert imported & HEAVY == ({"optimum"} if plugin else set())


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_only_optimum_loads_optimums_command(path: Path) -> None:
    command = [module for module in _imports(path) if _is_under(module, OPTIMUM_COMMAND)]
    assert not command or _is_under(_name(path), OPTIMUM_REGISTER)
    # This name exists only in the repository.
    assert not any(_is_under(module, OPTIMUM_REGISTER) for module in _imports(path))


@pytest.mark.parametrize("path", sorted((ROOT / "runtime" / "artifact").glob("*.py")), ids=_name)
def test_the_artifact_contract_is_standard_library_alone(path: Path) -> None:
    others = [module for module in _imports(path) if not _is_under(module, CONTRACT)]
    assert {module.partition(".")[0] for module in others} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (f"{CONTRACT}.folder", HEAVY | {"numpy", "onnxruntime"}),
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


def test_the_architecture_page_has_the_same_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for package, entries in ORDER.items():
        (row,) = re.findall(rf"^\| `{package}` \| (.*) \|$", page, re.MULTILINE)
        assert tuple(row.split(", ")) == entries
