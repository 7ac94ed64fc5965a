"""The tree of a server: it is small, has nothing that a server does not read, and serves alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from infra.shipping.elf import read_linkage
from infra.shipping.image_root import DROPPED, ROOT, build_root, drop_spare_library
from infra.shipping.locks import NOT_IMPORTED
from infra.shipping.tree_size import installed_parts, largest_table, total, tree_parts
from tests.infra.shipping.served_process import ask, served_process

MAX_TREE_BYTES, MAX_INSTALLED_BYTES = 125_000_000, 225_000_000
_FORM = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}


def environment(tree: Path, folder: Path) -> dict[str, str]:
    """What an image gives the process, and nothing of this one's."""
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}


def test_a_tree_with_its_bytecode_takes_125_mb_at_most(serving_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = tree_parts(serving_tree)
    table = f"serving tree\n{largest_table(parts)}"
    with capsys.disabled():
        print(f"\n{table}")
    assert total(parts) <= MAX_TREE_BYTES, table


def test_an_installation_by_pip_takes_225_mb_at_most(serving_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Summed over pip's own lists of this environment's packages: an installation takes minutes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    parts = installed_parts([*project["dependencies"], *project["optional-dependencies"]["cpu"]])
    ours = total(part for part in tree_parts(serving_tree) if part.name.startswith("qwonnx/"))
    exporter = sum(path.stat().st_size for path in (ROOT / "export").rglob("*") if path.suffix in (".py", ".toml"))
    sources = sum(path.stat().st_size for path in (ROOT / "runtime" / "native" / "sources").iterdir())
    whole = ours + 3 * exporter + sources  # the exporter's modules, and twice that for their bytecode
    table = f"pip install qwonnx[cpu], and {whole / 1e6:.1f} MB of qwonnx\n{largest_table(parts)}"
    with capsys.disabled():
        print(f"\n{table}")
    assert total(parts) + whole <= MAX_INSTALLED_BYTES, table
    names = {part.name for part in parts}
    assert not names & {"typer", "rich", "pydantic", "pygments", "torch", "transformers"}


def test_what_no_server_reads_is_gone_and_every_module_has_bytecode(serving_tree: Path) -> None:
    assert [pattern for pattern in DROPPED if pattern != "**/__pycache__" and any(serving_tree.glob(pattern))] == []
    modules = set(serving_tree.rglob("*.py"))
    bytecode = set(serving_tree.rglob("*.pyc"))
    assert {Path(cache_from_source(str(path))) for path in modules} == bytecode
    checked = [path for path in bytecode if path.read_bytes()[4:8] != b"\x01\x00\x00\x00"]
    assert checked == [], "bytecode whose source is looked at, or with a time (PEP 552)"
    machine = [path for path in bytecode if str(serving_tree).encode() in path.read_bytes()]
    assert machine == [], "bytecode with the builder's path"


def test_it_answers_alone_with_a_free_form_and_a_fixed_one(
    serving_tree: Path, counting_folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-S", "-m", "qwonnx.handlers.cli", "serve", str(counting_folder), "--port", "0"]
    with served_process(command, environment(serving_tree, tmp_path), tmp_path) as url:
        assert ask(url, "Hello", max_tokens=4)
        assert ask(url, "Hello", max_tokens=200, response_format=_FORM).startswith("{")
    assert list(tmp_path.iterdir()) == [], "a server wrote a file"


def test_functions_and_the_router_start_from_it_and_load_nothing_from_elsewhere(
    serving_tree: Path, tmp_path: Path
) -> None:
    program = (
        "import sys, sysconfig\n"
        "import qwonnx.handlers.functions.lambda_runtime, qwonnx.handlers.functions.aws_lambda\n"
        "import qwonnx.handlers.cli.route, qwonnx.handlers.routing.router, qwonnx.handlers.app\n"
        f"known = ({str(serving_tree)!r}, sysconfig.get_path('stdlib'))\n"
        "files = [getattr(m, '__file__', None) or known[0] for m in sys.modules.values()]\n"
        "print([file for file in files if not file.startswith(known)])\n"
    )
    run = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env=environment(serving_tree, tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr
    left_out = [name for name in NOT_IMPORTED if any(serving_tree.glob(f"{name.replace('-', '_')}*"))]
    assert left_out == []


def test_a_library_that_a_file_is_linked_to_stays(serving_tree: Path, tmp_path: Path) -> None:
    """Made so by renaming: NumPy's module is linked to OpenBLAS, whose name the spare library takes here."""
    (module,) = serving_tree.glob("numpy/_core/_multiarray_umath*.so")
    blas = next(name for name in read_linkage(module).needed if "openblas" in name)
    capi = tmp_path / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    (capi / module.name).symlink_to(module)
    (capi / "libonnxruntime.so.1").symlink_to(serving_tree / "numpy.libs" / blas)
    with pytest.raises(SystemExit, match=r"_multiarray_umath.*is linked to .*openblas"):
        drop_spare_library(tmp_path)
    assert (capi / "libonnxruntime.so.1").exists()
    (capi / module.name).unlink()
    drop_spare_library(tmp_path)
    assert not (capi / "libonnxruntime.so.1").exists()


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SystemExit, match="is not empty"):
        build_root(tmp_path, "cpu")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.soak
def test_pip_installs_the_lock_with_its_hashes(tmp_path: Path) -> None:
    """Downloads 50 MB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QWONNX_NATIVE_BUILD", "0")
        build_root(tmp_path / "root", "cpu")
    assert total(tree_parts(tmp_path / "root")) <= MAX_TREE_BYTES
